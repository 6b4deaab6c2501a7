{{- /*
What the operator may do where PostgresClusters are. It must itself hold what it grants: the Role of the instances
(leases) and of the backup Jobs (backups, backups/status). It deletes nothing but old Backups: what belongs to a cluster
goes with it, by owner references.
*/ -}}
{{- define "pgherd.rules" -}}
# Patch: a request by annotation is removed once it was taken up.
- apiGroups: [pgherd.dev]
  resources: [postgresclusters]
  verbs: [get, list, watch, patch]
- apiGroups: [pgherd.dev]
  resources: [backupschedules]
  verbs: [get, list, watch]
- apiGroups: [pgherd.dev]
  resources: [backups]
  verbs: [get, list, watch, create, delete]
- apiGroups: [pgherd.dev]
  resources: [postgresclusters/status, backupschedules/status, backups/status]
  verbs: [get, patch, update]
# Clusters where an owner's deletion can be blocked (OwnerReferencesPermissionEnforcement) ask for this.
- apiGroups: [pgherd.dev]
  resources: [postgresclusters/finalizers, backupschedules/finalizers, backups/finalizers]
  verbs: [update]
- apiGroups: [apps]
  resources: [statefulsets]
  verbs: [get, list, watch, create, patch, update]
- apiGroups: [""]
  resources: [services, configmaps, serviceaccounts]
  verbs: [get, list, watch, create, patch, update]
# No list and no watch: the operator knows the names of the Secrets that are its business.
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, create, patch, update]
# The role label.
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, patch]
# Volumes grow, and are never deleted.
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get, list, watch, patch]
- apiGroups: ["", events.k8s.io]
  resources: [events]
  verbs: [create, patch]
# The register of each cluster; list and watch are granted on to its instances.
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [get, list, watch, create, patch, update]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, update]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch, update]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, patch, update]
- apiGroups: [rbac.authorization.k8s.io]
  resources: [roles, rolebindings]
  verbs: [get, list, watch, create, patch, update]
{{- end }}
