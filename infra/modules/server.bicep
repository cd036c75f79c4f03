// The function app. Requests and background responses run on instances of their own (scale groups "http" and
// "function:NAME"), so RESPONSES_EAGER_START, which needs both in one process, is never set here.

@description('Name of the function app.')
param name string

@description('Name of the plan.')
param planName string

@description('Region.')
param location string

@description('Tags of every resource.')
param tags object

@description('Name of the user-assigned identity.')
param identityName string

@description('Name of the storage account.')
param storageName string

@description('Name of the container for the deployed code.')
param deploymentContainer string

@description('Name of the Application Insights component.')
param insightsName string

@description('Subnet to join, empty for none.')
param subnetId string

@description('Memory of an instance in MB.')
param instanceMemoryMB int

@description('Most instances of a scale group.')
param maximumInstanceCount int

@description('Requests an instance serves at once.')
param httpConcurrency int

@description('Instances that always wait for requests.')
param alwaysReadyHttp int

@description('Instances that always wait for background responses.')
param alwaysReadyRuns int

@description('The app to serve, as module:name.')
param agent string

@description('In front of the names of containers, tables and queues.')
param storagePrefix string

@description('Days that a response is kept after its end, 0 for ever.')
param retentionDays int

@description('Entries of RESPONSES_API_KEYS.')
@secure()
param apiKeys string

@description('Key Vault secret that holds them instead.')
param apiKeysVaultUri string

@description('Client id of the app registration whose tokens are accepted, empty for none.')
param entraClientId string

@description('Header in which a trusted gateway names its user.')
param trustedUserHeader string

@description('Origins of browsers that may call.')
param corsOrigins string

@description('Further app settings.')
@secure()
param moreSettings object

var waiting = [
  {
    name: 'http'
    instanceCount: alwaysReadyHttp
  }
  {
    name: 'function:run_response'
    instanceCount: alwaysReadyRuns
  }
]

var always = {
  AzureWebJobsStorage__accountName: account.name
  AzureWebJobsStorage__credential: 'managedidentity'
  AzureWebJobsStorage__clientId: identity.properties.clientId
  APPLICATIONINSIGHTS_CONNECTION_STRING: insights.properties.ConnectionString
  APPLICATIONINSIGHTS_AUTHENTICATION_STRING: 'ClientId=${identity.properties.clientId};Authorization=AAD'
  AzureWebJobsDisableHomepage: 'true'
  RESPONSES_AGENT: agent
  RESPONSES_AUTH: empty(entraClientId) ? 'keys' : 'entra'
  RESPONSES_RETENTION_DAYS: string(retentionDays)
}
var prefixed = empty(storagePrefix) ? {} : {
  RESPONSES_STORAGE_PREFIX: storagePrefix
}
var keys = empty(apiKeys) ? {} : {
  RESPONSES_API_KEYS: apiKeys
}
var vaultKeys = empty(apiKeysVaultUri) ? {} : {
  RESPONSES_API_KEYS: '@Microsoft.KeyVault(SecretUri=${apiKeysVaultUri})'
}
var gateway = empty(trustedUserHeader) ? {} : {
  RESPONSES_TRUSTED_USER_HEADER: trustedUserHeader
}
var browsers = empty(corsOrigins) ? {} : {
  RESPONSES_CORS_ORIGINS: corsOrigins
}

resource identity 'Microsoft.ManagedIdentity/userAssignedIdentities@2023-01-31' existing = {
  name: identityName
}

resource account 'Microsoft.Storage/storageAccounts@2024-01-01' existing = {
  name: storageName
}

resource insights 'Microsoft.Insights/components@2020-02-02' existing = {
  name: insightsName
}

resource plan 'Microsoft.Web/serverfarms@2024-04-01' = {
  name: planName
  location: location
  tags: tags
  kind: 'functionapp'
  sku: {
    name: 'FC1'
    tier: 'FlexConsumption'
  }
  properties: {
    reserved: true
  }
}

resource app 'Microsoft.Web/sites@2024-04-01' = {
  name: name
  location: location
  tags: union(tags, {
    'azd-service-name': 'server'
  })
  kind: 'functionapp,linux'
  identity: {
    type: 'UserAssigned'
    userAssignedIdentities: {
      '${identity.id}': {}
    }
  }
  properties: {
    serverFarmId: plan.id
    httpsOnly: true
    keyVaultReferenceIdentity: identity.id
    virtualNetworkSubnetId: empty(subnetId) ? null : subnetId
    siteConfig: {
      minTlsVersion: '1.2'
    }
    functionAppConfig: {
      deployment: {
        storage: {
          type: 'blobContainer'
          value: '${account.properties.primaryEndpoints.blob}${deploymentContainer}'
          authentication: {
            type: 'UserAssignedIdentity'
            userAssignedIdentityResourceId: identity.id
          }
        }
      }
      runtime: {
        name: 'python'
        version: '3.13'
      }
      scaleAndConcurrency: {
        instanceMemoryMB: instanceMemoryMB
        maximumInstanceCount: maximumInstanceCount
        alwaysReady: filter(waiting, each => each.instanceCount > 0)
        triggers: {
          http: {
            perInstanceConcurrency: httpConcurrency
          }
        }
      }
    }
  }

  resource settings 'config' = {
    name: 'appsettings'
    properties: union(moreSettings, always, prefixed, keys, vaultKeys, gateway, browsers)
  }

  // The platform turns away who has no token before the server sees a request; /healthz stays open.
  resource authentication 'config' = if (!empty(entraClientId)) {
    name: 'authsettingsV2'
    properties: {
      platform: {
        enabled: true
      }
      globalValidation: {
        requireAuthentication: true
        unauthenticatedClientAction: 'Return401'
        excludedPaths: [
          '/healthz'
        ]
      }
      httpSettings: {
        requireHttps: true
      }
      identityProviders: {
        azureActiveDirectory: {
          enabled: true
          registration: {
            clientId: entraClientId
            openIdIssuer: '${environment().authentication.loginEndpoint}${tenant().tenantId}/v2.0'
          }
          validation: {
            allowedAudiences: [
              entraClientId
              'api://${entraClientId}'
            ]
          }
        }
      }
      login: {
        tokenStore: {
          enabled: false
        }
      }
    }
  }

  // Deployments come with a token, not with a publishing password.
  resource ftp 'basicPublishingCredentialsPolicies' = {
    name: 'ftp'
    properties: {
      allow: false
    }
  }

  resource scm 'basicPublishingCredentialsPolicies' = {
    name: 'scm'
    properties: {
      allow: false
    }
  }
}

@description('Name of the function app.')
output name string = app.name

@description('Its address, without a path.')
output url string = 'https://${app.properties.defaultHostName}'
