{{- define "remediator.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "remediator.fullname" -}}
{{- $name := include "remediator.name" . }}
{{- if .Values.fullnameOverride }}{{ .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "remediator.selector" -}}
app.kubernetes.io/name: {{ include "remediator.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "remediator.labels" -}}
{{ include "remediator.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "remediator.reader" -}}
{{- if .Values.serviceAccount.name }}{{ .Values.serviceAccount.name }}
{{- else if .Values.serviceAccount.create }}{{ include "remediator.fullname" . }}
{{- else }}default
{{- end }}
{{- end }}

{{- define "remediator.writer" -}}
{{ include "remediator.fullname" . }}-writer
{{- end }}

{{- define "remediator.rules" -}}
{{- /* The rules of a list of rights, one a resource. */ -}}
{{- $verbs := dict }}
{{- range . }}
{{- $key := printf "%s %s" .group .resource }}
{{- $_ := set $verbs $key (append (get $verbs $key | default list) .verb | uniq | sortAlpha) }}
{{- end }}
{{- range $key := keys $verbs | sortAlpha }}
- apiGroups: [{{ (splitList " " $key) | first | quote }}]
  resources: [{{ (splitList " " $key) | last | quote }}]
  verbs: {{ get $verbs $key | toJson }}
{{- end }}
{{- end }}

{{- define "remediator.checked" -}}
{{- /* Stops what could be rendered, but not work. */ -}}
{{- $config := toJson .Values.config }}
{{- if and (gt (int .Values.replicas) 1) (not .Values.store.dsnSecret.name) }}
{{- fail "replicas: more than one needs PostgreSQL, since SQLite is for one process; set store.dsnSecret.name to a Secret with the PostgreSQL URL" }}
{{- end }}
{{- if not .Values.config.credentials }}
{{- fail "config.credentials: there are none, and the pod listens on all its addresses; create a Secret, name it in `secrets`, and refer to it, such as {name: alertmanager, role: ingest, token_file: /secrets/NAME/KEY}" }}
{{- end }}
{{- range $key := list "listen" "state_dir" }}
{{- if hasKey $.Values.config $key }}
{{- fail (printf "config.%s: is set by the chart; take it out" $key) }}
{{- end }}
{{- end }}
{{- range $key := list "dsn_file" "dsn_env" }}
{{- if hasKey ($.Values.config.store | default dict) $key }}
{{- fail (printf "config.store.%s: is set by the chart; set store.dsnSecret.name instead" $key) }}
{{- end }}
{{- end }}
{{- range $key := list "url_file" "url_env" }}
{{- if hasKey ($.Values.config.redis | default dict) $key }}
{{- fail (printf "config.redis.%s: is set by the chart; set redis.urlSecret.name instead" $key) }}
{{- end }}
{{- end }}
{{- range regexFindAll "\"/secrets/[^/\"]*" $config -1 }}
{{- $name := trimPrefix "\"/secrets/" . }}
{{- if not (has $name $.Values.secrets) }}
{{- fail (printf "config: refers to /secrets/%s, which is not mounted; add %q to secrets" $name $name) }}
{{- end }}
{{- end }}
{{- $refers := contains "\"/writer/kubeconfig\"" $config }}
{{- if and .Values.writer.enabled (not $refers) }}
{{- fail "writer.enabled: no cluster uses the writer; set writer_kubeconfig: /writer/kubeconfig in config.backends.kubernetes.NAME, or disable it" }}
{{- end }}
{{- if and $refers (not .Values.writer.enabled) }}
{{- fail "config: refers to /writer/kubeconfig, but there is no writer; set writer.enabled, or take writer_kubeconfig out" }}
{{- end }}
{{- $levers := list }}
{{- range .Values.rbac.namespaces }}{{ $levers = concat $levers (.levers | default list) }}{{ end }}
{{- if and .Values.rbac.create .Values.writer.enabled (not $levers) }}
{{- fail "writer.enabled: rbac.namespaces lets it change nothing; see what is needed with: remediator rbac --values --config FILE" }}
{{- end }}
{{- if and $levers (not .Values.writer.enabled) }}
{{- fail "rbac.namespaces: names levers, but there is no writer to pull them; set writer.enabled, or leave levers out" }}
{{- end }}
{{- end }}
