{{- define "halley.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "halley.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "halley.labels" -}}
{{ include "halley.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "halley.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "halley.name" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "halley.image" -}}
{{- $_ := required "image.repository is empty: push the image to a registry of yours, and set image.repository to it" .Values.image.repository -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- /* Whether the pods are static members: "true" or nothing. */ -}}
{{- define "halley.isStaticMember" -}}
{{- if eq (toString .Values.staticMembership) "auto" -}}
{{- $consumer := `(?m)^[^#\n]*group\.protocol["']?\s*=\s*["']consumer["']` -}}
{{- $texts := list .Values.config -}}
{{- range .Values.env -}}
{{- $texts = append $texts (.value | default "") -}}
{{- end -}}
{{- if not (regexMatch $consumer (join "\n" $texts)) -}}true{{- end -}}
{{- else if .Values.staticMembership -}}true
{{- end -}}
{{- end -}}

{{- /* Refuses values that cannot work together. */ -}}
{{- define "halley.checkValues" -}}
{{- $ports := dict "ports.admin" (int .Values.ports.admin) "ports.probes" (int .Values.ports.probes) -}}
{{- if .Values.api.enabled -}}
{{- $_ := set $ports "api.port" (int .Values.api.port) -}}
{{- end -}}
{{- range $one, $port := $ports -}}
{{- range $other, $same := $ports -}}
{{- if and (ne $one $other) (eq $port $same) -}}
{{- fail (printf "%s and %s are both %d: a pod listens once on each port" $one $other $port) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and .Values.keda.enabled (lt (int .Values.keda.maxReplicas) (int .Values.keda.minReplicas)) -}}
{{- fail (printf "keda.maxReplicas (%d) is below keda.minReplicas (%d)" (int .Values.keda.maxReplicas) (int .Values.keda.minReplicas)) -}}
{{- end -}}
{{- end -}}

{{- /* What restricts each container. */ -}}
{{- define "halley.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: { drop: [ALL] }
{{- end -}}

{{- /* The archivers' own labels: the gateways' selector must not find them. */ -}}
{{- define "halley.archiver.selector" -}}
app.kubernetes.io/name: {{ printf "%s-archiver" .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "halley.archiver.labels" -}}
{{ include "halley.archiver.selector" . }}
app.kubernetes.io/component: archiver
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}
