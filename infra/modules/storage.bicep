// The storage account: what the server knows, and its code. Keys are refused, also those of the account's owner.

@description('Name of the account.')
@minLength(3)
@maxLength(24)
param name string

@description('Region.')
param location string

@description('Tags of every resource.')
param tags object

@description('Redundancy of the account.')
param redundancy string

@description('In front of the names of all containers, tables and queues but that of the deployments.')
param prefix string

@description('Whether the account answers outside of its private endpoints.')
param publicNetworkAccess bool

@description('Days that a response is kept after its end, 0 for ever.')
@minValue(0)
param retentionDays int

var deployments = 'deployments'
var containers = [
  'events'
  'payloads'
]
var tables = [
  'responses'
  'workers'
  'idempotency'
  'expiry'
]
var queues = [
  'responses-work'
  'responses-watch'
]

resource account 'Microsoft.Storage/storageAccounts@2024-01-01' = {
  name: name
  location: location
  tags: tags
  kind: 'StorageV2'
  sku: {
    name: redundancy
  }
  properties: {
    accessTier: 'Hot'
    allowBlobPublicAccess: false
    allowCrossTenantReplication: false
    allowSharedKeyAccess: false
    defaultToOAuthAuthentication: true
    minimumTlsVersion: 'TLS1_2'
    publicNetworkAccess: publicNetworkAccess ? 'Enabled' : 'Disabled'
    supportsHttpsTrafficOnly: true
    networkAcls: {
      bypass: 'AzureServices'
      defaultAction: publicNetworkAccess ? 'Allow' : 'Deny'
    }
  }
}

// What a client deletes is gone: no version and no soft-deleted copy of a response may stay.
resource blobs 'Microsoft.Storage/storageAccounts/blobServices@2024-01-01' = {
  parent: account
  name: 'default'
  properties: {
    isVersioningEnabled: false
    changeFeed: {
      enabled: false
    }
    deleteRetentionPolicy: {
      enabled: false
    }
  }
}

resource deploymentContainer 'Microsoft.Storage/storageAccounts/blobServices/containers@2024-01-01' = {
  parent: blobs
  name: deployments
}

resource blobContainers 'Microsoft.Storage/storageAccounts/blobServices/containers@2024-01-01' = [for each in containers: {
  parent: blobs
  name: '${prefix}${each}'
}]

resource tableService 'Microsoft.Storage/storageAccounts/tableServices@2024-01-01' = {
  parent: account
  name: 'default'
}

resource storedTables 'Microsoft.Storage/storageAccounts/tableServices/tables@2024-01-01' = [for each in tables: {
  parent: tableService
  name: '${prefix}${each}'
}]

resource queueService 'Microsoft.Storage/storageAccounts/queueServices@2024-01-01' = {
  parent: account
  name: 'default'
}

resource storedQueues 'Microsoft.Storage/storageAccounts/queueServices/queues@2024-01-01' = [for each in queues: {
  parent: queueService
  name: '${prefix}${each}'
}]

// A backstop, should the server fail to delete for a month. Only for logs: they are never written to after the end of
// their response, while payloads also hold the items of conversations, which do not end.
resource lifecycle 'Microsoft.Storage/storageAccounts/managementPolicies@2024-01-01' = if (retentionDays > 0) {
  parent: account
  name: 'default'
  properties: {
    policy: {
      rules: [
        {
          name: 'delete-old-logs'
          type: 'Lifecycle'
          enabled: true
          definition: {
            actions: {
              baseBlob: {
                delete: {
                  daysAfterModificationGreaterThan: retentionDays + 30
                }
              }
            }
            filters: {
              blobTypes: [
                'appendBlob'
              ]
              prefixMatch: [
                '${prefix}events/'
              ]
            }
          }
        }
      ]
    }
  }
}

@description('Name of the account.')
output name string = account.name

@description('Name of the container that holds the deployed code.')
output deploymentContainer string = deploymentContainer.name
