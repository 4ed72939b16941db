{{/* What must not be rendered. */}}

{{/* A stop needs the drain, two seconds for the store's replay, and the closing of every connection. Takes (dict name, values, lead). */}}
{{- define "postrider.checkGrace" -}}
{{- $needed := add .values.drainSeconds .lead 10 -}}
{{- if lt (int64 .values.terminationGracePeriodSeconds) $needed -}}
{{- fail (printf "%s.terminationGracePeriodSeconds is %d, but a drain of %d s needs at least %d: Kubernetes would kill attempts under way, and mail would be sent twice" .name (int64 .values.terminationGracePeriodSeconds) (int64 .values.drainSeconds) $needed) -}}
{{- end -}}
{{- end }}

{{- define "postrider.checks" -}}
{{- include "postrider.checkGrace" (dict "name" "workers" "values" .Values.workers "lead" 0) -}}
{{- include "postrider.checkGrace" (dict "name" "gateway" "values" .Values.gateway "lead" .Values.gateway.preStopSeconds) -}}
{{- if regexMatch "(?m)^\\s*\\w*(password|secret|token|api_key|secret_key|secret_access_key|signing_key)\\s*=\\s*[\"']" .Values.config -}}
{{- fail "config holds a secret in the clear: write { env = \"NAME\" } and name the Secret in `env`, or { file = \"PATH\" } and `files`" -}}
{{- end -}}
{{- if regexMatch "(?m)^\\s*(drain|listen|topology|shards)\\s*=" .Values.config -}}
{{- fail "config sets drain, listen, topology or shards, which come from workers.drainSeconds, admin.port, topology.mode and queue.shards" -}}
{{- end -}}
{{- with (fromToml .Values.config).Error -}}
{{- fail (printf "config is no TOML: %s" .) -}}
{{- end -}}
{{- if regexMatch "(?ms)^\\s*\\[(queue|store)\\][^\\[]*^\\s*url\\s*=" .Values.config -}}
{{- fail "config sets queue.url or store.url, which come from the Secrets of the values queue and store" -}}
{{- end -}}
{{- range .Values.env -}}
{{- if and (not .secret) (regexMatch "PASSWORD|SECRET|TOKEN|KEY|__URL$" .name) -}}
{{- fail (printf "env %s holds a secret in the clear: give it `secret` and `key` instead of `value`" .name) -}}
{{- end -}}
{{- end -}}
{{- with .Values.gateway -}}
{{- if and .ingress.enabled (not (and .ingress.hosts .ingress.tlsSecret)) -}}
{{- fail "gateway.ingress needs hosts and tlsSecret: API keys must not travel in the clear" -}}
{{- end -}}
{{- if and .autoscaling.enabled (gt (int64 .autoscaling.minReplicas) (int64 .autoscaling.maxReplicas)) -}}
{{- fail "gateway.autoscaling.minReplicas is greater than gateway.autoscaling.maxReplicas" -}}
{{- end -}}
{{- if and .smtp.enabled (not (regexMatch "(?m)^\\s*certificate\\s*=" $.Values.config)) -}}
{{- fail "gateway.smtp needs certificate and private_key in config, in the table [gateway.smtp]" -}}
{{- end -}}
{{- end -}}
{{- if and (eq .Values.topology.mode "operator") (not (or .Values.topology.operator.cluster .Values.topology.operator.connectionSecret)) -}}
{{- fail "topology.mode operator needs topology.operator.cluster or topology.operator.connectionSecret" -}}
{{- end -}}
{{- if .Values.keda.enabled -}}
{{- if gt (int64 .Values.keda.minReplicas) (int64 .Values.keda.maxReplicas) -}}
{{- fail "keda.minReplicas is greater than keda.maxReplicas" -}}
{{- end -}}
{{- if eq .Values.keda.source "prometheus" -}}
{{- if not .Values.keda.prometheus.serverAddress -}}
{{- fail "keda.source prometheus needs keda.prometheus.serverAddress" -}}
{{- end -}}
{{- if lt (int64 .Values.keda.minReplicas) 1 -}}
{{- fail "keda.minReplicas must be at least 1 with prometheus: without a worker nobody reports a backlog, and none would ever start" -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end }}
