// Everything one server needs, in a resource group of its own: a function app on the Flex Consumption plan, its storage
// account, the identity that joins the two, and a place for logs. No secret is made here; the server reaches storage
// and Application Insights with its identity, and both refuse keys.
targetScope = 'subscription'

@description('Name of the environment. The names of all resources derive from it and from the subscription.')
@minLength(1)
@maxLength(40)
param environmentName string

@description('Region of all resources. It has to offer the Flex Consumption plan.')
@minLength(1)
param location string

@description('The app to serve, as module:name (RESPONSES_AGENT).')
@minLength(3)
param agent string = 'agent:app'

@description('In front of the names of all containers, tables and queues: a letter, then letters and digits, in lower case.')
@maxLength(31)
param storagePrefix string = ''

@description('Who may call: the entries of RESPONSES_API_KEYS, with hashed keys. Without them and without Entra ID the server refuses all callers; with both too.')
@secure()
param apiKeys string = ''

@description('Address of a Key Vault secret that holds those entries, in place of apiKeys. The identity has to be allowed to read it.')
param apiKeysVaultUri string = ''

@description('Client id of an app registration. With it the platform admits only callers with a token of this tenant for that app.')
param entraClientId string = ''

@description('Header in which a trusted gateway names its user (RESPONSES_TRUSTED_USER_HEADER).')
param trustedUserHeader string = ''

@description('Origins of browsers that may call, separated by commas (RESPONSES_CORS_ORIGINS).')
param corsOrigins string = ''

@description('Further app settings: what the app needs for its model, other settings of the server. Those made here win.')
@secure()
param moreSettings object = {}

@description('Memory of an instance in MB. An instance runs up to 32 background responses, or as many requests as httpConcurrency says.')
@allowed([
  512
  2048
  4096
])
param instanceMemoryMB int = 2048

@description('Most instances of each scale group: the requests are one, and so is every queue and the timer.')
@minValue(40)
@maxValue(1000)
param maximumInstanceCount int = 100

@description('Requests an instance serves at once, open streams included.')
@minValue(1)
@maxValue(1000)
param httpConcurrency int = 100

@description('Instances that always wait for requests. Each one costs, used or not.')
@minValue(0)
@maxValue(20)
param alwaysReadyHttp int = 0

@description('Instances that always wait for background responses. Each one costs, used or not.')
@minValue(0)
@maxValue(20)
param alwaysReadyRuns int = 0

@description('Storage reachable from a virtual network only. The server itself stays reachable from the internet.')
param privateNetwork bool = false

@description('Days that a response is kept after its end, 0 for ever (RESPONSES_RETENTION_DAYS).')
@minValue(0)
@maxValue(3650)
param retentionDays int = 30

@description('Days that telemetry is kept.')
@minValue(30)
@maxValue(730)
param logRetentionDays int = 30

@description('Redundancy of the storage account, on which everything rests. Standard_ZRS outlives a zone, in regions that have zones.')
@allowed([
  'Standard_LRS'
  'Standard_ZRS'
  'Standard_GRS'
  'Standard_GZRS'
])
param storageRedundancy string = 'Standard_LRS'

var token = toLower(uniqueString(subscription().id, environmentName, location))
var tags = {
  'azd-env-name': environmentName
}

resource group 'Microsoft.Resources/resourceGroups@2021-04-01' = {
  name: 'rg-${environmentName}'
  location: location
  tags: tags
}

module identity 'modules/identity.bicep' = {
  name: 'identity'
  scope: group
  params: {
    name: 'id-${token}'
    location: location
    tags: tags
  }
}

module monitoring 'modules/monitoring.bicep' = {
  name: 'monitoring'
  scope: group
  params: {
    workspaceName: 'log-${token}'
    insightsName: 'appi-${token}'
    location: location
    tags: tags
    retentionDays: logRetentionDays
  }
}

module storage 'modules/storage.bicep' = {
  name: 'storage'
  scope: group
  params: {
    name: 'st${token}'
    location: location
    tags: tags
    redundancy: storageRedundancy
    prefix: storagePrefix
    publicNetworkAccess: !privateNetwork
    retentionDays: retentionDays
  }
}

module access 'modules/access.bicep' = {
  name: 'access'
  scope: group
  params: {
    principalId: identity.outputs.principalId
    storageName: storage.outputs.name
    insightsName: monitoring.outputs.insightsName
  }
}

module network 'modules/network.bicep' = if (privateNetwork) {
  name: 'network'
  scope: group
  params: {
    name: 'vnet-${token}'
    location: location
    tags: tags
    storageName: storage.outputs.name
  }
}

module server 'modules/server.bicep' = {
  name: 'server'
  scope: group
  params: {
    name: 'func-${token}'
    planName: 'plan-${token}'
    location: location
    tags: tags
    identityName: identity.outputs.name
    storageName: storage.outputs.name
    deploymentContainer: storage.outputs.deploymentContainer
    insightsName: monitoring.outputs.insightsName
    subnetId: privateNetwork ? network!.outputs.serverSubnetId : ''
    instanceMemoryMB: instanceMemoryMB
    maximumInstanceCount: maximumInstanceCount
    httpConcurrency: httpConcurrency
    alwaysReadyHttp: alwaysReadyHttp
    alwaysReadyRuns: alwaysReadyRuns
    agent: agent
    storagePrefix: storagePrefix
    retentionDays: retentionDays
    apiKeys: apiKeys
    apiKeysVaultUri: apiKeysVaultUri
    entraClientId: entraClientId
    trustedUserHeader: trustedUserHeader
    corsOrigins: corsOrigins
    moreSettings: moreSettings
  }
  // Its first start needs them, and a role takes a while to be known everywhere.
  dependsOn: [
    access
  ]
}

@description('What a client of the Responses API is configured with.')
output RESPONSES_BASE_URL string = '${server.outputs.url}/v1'

@description('Name of the function app.')
output AZURE_FUNCTION_NAME string = server.outputs.name

@description('Name of the resource group.')
output AZURE_RESOURCE_GROUP string = group.name

@description('Name of the storage account.')
output AZURE_STORAGE_ACCOUNT string = storage.outputs.name

@description('Principal of the identity, for more roles: a model, a key vault.')
output SERVER_IDENTITY_PRINCIPAL_ID string = identity.outputs.principalId
