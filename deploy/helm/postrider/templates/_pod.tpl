{{/* What every pod has in common. */}}

{{- define "postrider.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "postrider.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* Addresses and what the chart decides. The environment wins over the file. */}}
{{- define "postrider.env" -}}
{{- include "postrider.queueEnv" (dict "secret" .Values.queue.secret "key" .Values.queue.key "shards" .Values.queue.shards) }}
{{- end }}

{{- define "postrider.queueEnv" -}}
- name: POSTRIDER_QUEUE__URL
  valueFrom:
    secretKeyRef: { name: {{ .secret }}, key: {{ .key }} }
- name: POSTRIDER_QUEUE__SHARDS
  value: {{ .shards | quote }}
{{- end }}

{{/* The environment of a container that reads the configuration. Takes what a Deployment takes. */}}
{{- define "postrider.containerEnv" -}}
{{- $root := .root -}}
{{- $values := .values -}}
{{ if eq .component "gateway" -}}
{{- with $root.Values.queue }}{{ include "postrider.queueEnv" (dict "secret" ($values.queue.secret | default .secret) "key" ($values.queue.key | default .key) "shards" .shards) }}{{ end }}
{{- else -}}
{{ include "postrider.env" $root }}
{{- end }}
# For commands that a person runs in the container: the same file, or they know no transport and no limit.
- name: POSTRIDER_CONFIG
  value: /etc/postrider/postrider.toml
- name: POSTRIDER_QUEUE__TOPOLOGY
  value: {{ ternary "apply" "verify" (eq $root.Values.topology.mode "worker") }}
- name: POSTRIDER_STORE__URL
  valueFrom:
    secretKeyRef: { name: {{ $root.Values.store.secret }}, key: {{ $root.Values.store.key }} }
- name: {{ .drain }}
  value: {{ printf "%ds" (int64 $values.drainSeconds) | quote }}
{{- if eq .component "gateway" }}
- name: POSTRIDER_GATEWAY__LISTEN
  value: {{ printf "0.0.0.0:%d" (int64 $values.port) | quote }}
{{- if $values.smtp.enabled }}
- name: POSTRIDER_GATEWAY__SMTP__LISTEN
  value: {{ printf "0.0.0.0:%d" (int64 $values.smtp.port) | quote }}
- name: POSTRIDER_GATEWAY__SMTP__LISTEN_TLS
  value: {{ printf "0.0.0.0:%d" (int64 $values.smtp.tlsPort) | quote }}
{{- end }}
{{- end }}
- name: POSTRIDER_ADMIN__LISTEN
  value: {{ printf "0.0.0.0:%d" (int64 $root.Values.admin.port) | quote }}
- name: POSTRIDER_LOG__LEVEL
  value: {{ $root.Values.log.level | quote }}
- name: POSTRIDER_LOG__FORMAT
  value: json
{{- range $root.Values.env }}
- name: {{ .name }}
  {{- if .secret }}
  valueFrom:
    secretKeyRef: { name: {{ .secret }}, key: {{ .key }} }
  {{- else }}
  value: {{ .value | quote }}
  {{- end }}
{{- end }}
{{- with $root.Values.telemetry }}
{{- if .otlpEndpoint }}
- name: POD_NAME
  valueFrom:
    fieldRef: { fieldPath: metadata.name }
- name: OTEL_SERVICE_NAME
  value: postrider-{{ $.component }}
- name: OTEL_RESOURCE_ATTRIBUTES
  value: service.namespace={{ $root.Release.Namespace }},service.instance.id=$(POD_NAME),k8s.pod.name=$(POD_NAME)
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ .otlpEndpoint | quote }}
- name: OTEL_EXPORTER_OTLP_PROTOCOL
  value: http/protobuf
- name: OTEL_TRACES_SAMPLER
  value: parentbased_traceidratio
- name: OTEL_TRACES_SAMPLER_ARG
  value: {{ .tracesRatio | quote }}
{{- end }}
{{- end }}
{{- end }}

{{/* Configuration and secrets as files. */}}
{{- define "postrider.mounts" -}}
# The whole folder: a file mounted alone would not follow changes.
- { name: config, mountPath: /etc/postrider, readOnly: true }
{{- range $index, $file := .Values.files }}
- { name: secret-{{ $index }}, mountPath: {{ $file.path }}, readOnly: true }
{{- end }}
{{- end }}

{{/* A Deployment. Takes (dict root, component, values, drain). */}}
{{- define "postrider.deployment" -}}
{{- $root := .root -}}
{{- $values := .values -}}
{{- $scaled := ternary $root.Values.keda.enabled $root.Values.gateway.autoscaling.enabled (eq .component "worker") -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ include "postrider.name" $root }}-{{ .component }}
  namespace: {{ $root.Release.Namespace }}
  labels:
    {{- include "postrider.labels" $root | nindent 4 }}
    app.kubernetes.io/component: {{ .component }}
spec:
  {{- if not $scaled }}
  replicas: {{ $values.replicas }}
  {{- end }}
  revisionHistoryLimit: 5
  minReadySeconds: 5
  strategy:
    type: RollingUpdate
    rollingUpdate: { maxUnavailable: 0, maxSurge: 1 }
  selector:
    matchLabels:
      {{- include "postrider.selector" (list $root .component) | nindent 6 }}
  template:
    metadata:
      labels:
        {{- include "postrider.labels" $root | nindent 8 }}
        app.kubernetes.io/component: {{ .component }}
      annotations:
        checksum/config: {{ $root.Values.config | sha256sum }}
        {{- with $values.annotations }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    spec:
      serviceAccountName: {{ include "postrider.serviceAccount" $root }}
      automountServiceAccountToken: false
      enableServiceLinks: false
      terminationGracePeriodSeconds: {{ $values.terminationGracePeriodSeconds }}
      securityContext:
        {{- include "postrider.podSecurity" $root | nindent 8 }}
      {{- with $root.Values.image.pullSecrets }}
      imagePullSecrets:
        {{- range . }}
        - name: {{ . }}
        {{- end }}
      {{- end }}
      {{- with $values.priorityClassName }}
      priorityClassName: {{ . }}
      {{- end }}
      topologySpreadConstraints:
        {{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
        - maxSkew: 1
          topologyKey: {{ . }}
          whenUnsatisfiable: ScheduleAnyway
          labelSelector:
            matchLabels:
              {{- include "postrider.selector" (list $root $.component) | nindent 14 }}
          matchLabelKeys: [pod-template-hash]
        {{- end }}
      {{- if eq .component "worker" }}
      # A configuration or a secret that cannot be used ends here, with its reason, and the rollout stops.
      initContainers:
        - name: check
          image: {{ include "postrider.image" $root }}
          imagePullPolicy: {{ $root.Values.image.pullPolicy }}
          args: [check, --config, /etc/postrider/postrider.toml]
          securityContext:
            {{- include "postrider.containerSecurity" $root | nindent 12 }}
          env:
            {{- include "postrider.containerEnv" . | nindent 12 }}
          resources:
            requests: { cpu: 50m, memory: 32Mi }
            limits: { memory: 128Mi }
          volumeMounts:
            {{- include "postrider.mounts" $root | nindent 12 }}
      {{- end }}
      containers:
        - name: {{ .component }}
          image: {{ include "postrider.image" $root }}
          imagePullPolicy: {{ $root.Values.image.pullPolicy }}
          args: [{{ .component }}, --config, /etc/postrider/postrider.toml]
          securityContext:
            {{- include "postrider.containerSecurity" $root | nindent 12 }}
          env:
            {{- include "postrider.containerEnv" . | nindent 12 }}
          ports:
            - { name: admin, containerPort: {{ $root.Values.admin.port }}, protocol: TCP }
            {{- if eq .component "gateway" }}
            - { name: http, containerPort: {{ $values.port }}, protocol: TCP }
            {{- if $values.smtp.enabled }}
            - { name: submission, containerPort: {{ $values.smtp.port }}, protocol: TCP }
            - { name: submissions, containerPort: {{ $values.smtp.tlsPort }}, protocol: TCP }
            {{- end }}
            {{- end }}
          # The admin address listens once queue and store were reached.
          startupProbe:
            httpGet: { path: /healthz, port: admin }
            periodSeconds: 2
            failureThreshold: 60
          livenessProbe:
            httpGet: { path: /healthz, port: admin }
            periodSeconds: 10
            timeoutSeconds: 3
            failureThreshold: 6
          readinessProbe:
            httpGet: { path: /readyz, port: admin }
            periodSeconds: 5
            timeoutSeconds: 3
          {{- if eq .component "gateway" }}
          lifecycle:
            preStop:
              sleep: { seconds: {{ $values.preStopSeconds }} }
          {{- end }}
          resources:
            {{- toYaml $values.resources | nindent 12 }}
          volumeMounts:
            {{- include "postrider.mounts" $root | nindent 12 }}
      volumes:
        - name: config
          configMap:
            name: {{ include "postrider.name" $root }}
        {{- range $index, $file := $root.Values.files }}
        - name: secret-{{ $index }}
          secret:
            secretName: {{ $file.secret }}
            defaultMode: 0440
        {{- end }}
      {{- with $values.nodeSelector }}
      nodeSelector:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $values.tolerations }}
      tolerations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $values.affinity }}
      affinity:
        {{- toYaml . | nindent 8 }}
      {{- end }}
{{- end }}

{{/* A PodDisruptionBudget. Takes (dict root, component, values). */}}
{{- define "postrider.budget" -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ include "postrider.name" .root }}-{{ .component }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "postrider.labels" .root | nindent 4 }}
spec:
  maxUnavailable: {{ .values.podDisruptionBudget.maxUnavailable }}
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      {{- include "postrider.selector" (list .root .component) | nindent 6 }}
{{- end }}
