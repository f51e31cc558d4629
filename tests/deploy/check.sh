#!/usr/bin/env bash
# `make deploy-check`: what checks the files of examples/deploy and takes too long for `make test`.
#
# hadolint reads the Dockerfile, the Compose specification's own loader compose.yaml, helm lints and renders the chart
# with each of its ci/*-values.yaml, and each resource is checked against its schema. Nothing runs in a container.
set -euo pipefail
cd "$(dirname "$0")/../.."

tools=$(tests/support/fetch-deploy-tools.sh)
PATH=$tools/bin:$PATH
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
version=1.34.0
say() { printf 'deploy: %s\n' "$*"; }

hadolint --config .hadolint.yaml Dockerfile
say "hadolint finds nothing in the Dockerfile"
compose-spec examples/deploy/compose.yaml >/dev/null
say "compose.yaml is valid"

chart=$work/halley
cp -r examples/deploy/helm/halley "$chart"
mkdir -p "$chart/files"
cp examples/deploy/prometheus/alerts.yaml "$chart/files/"
cp tests/deploy/resources.mjs "$tools/models/"
valid() {
    kubeconform -strict -summary -kubernetes-version "$version" -ignore-missing-schemas \
        -schema-location "$tools/schemas/{{ .ResourceKind }}{{ .KindSuffix }}.json" "$1" && node "$tools/models/resources.mjs" "$1"
}
echo 'image: { repository: registry.example/halley }' >"$work/default-values.yaml"
for values in "$work/default-values.yaml" examples/deploy/helm/halley/ci/*-values.yaml; do
    say "the chart with $(basename "$values")"
    helm lint --strict --quiet --kube-version "$version" -f "$values" "$chart"
    rendered=$work/$(basename "$values" -values.yaml).yaml
    helm template gateway "$chart" --kube-version "$version" -f "$values" >"$rendered"
    valid "$rendered"
    tests/deploy/rendered.py "$rendered"
done

# What finds nothing must be able to find something.
refused() {
    if "$@" >"$work/said" 2>&1; then
        say "this should have been refused: $*"
        exit 1
    fi
}
render() { helm template gateway "$chart" --kube-version "$version" --set image.repository=registry.example/halley "$@"; }
# refused_because WORDS VALUES...: the chart says why.
refused_because() {
    refused render "${@:2}"
    grep -qF "$1" "$work/said" || {
        say "${*:2} should have been refused with '$1', not: $(cat "$work/said")"
        exit 1
    }
}
refused render --set replica=3
refused render --set shutdownGraceSeconds=never
refused render --set env[0].secret=x
refused helm template gateway examples/deploy/helm/halley --kube-version "$version" --set prometheusRule.enabled=true
refused_because "set image.repository" --set image.repository=
refused_because "ports.admin and ports.probes are both 9095" --set ports.admin=9095
refused_because "api.port and ports.probes are both 9095" --set api.enabled=true,api.port=9095
refused_because "keda.maxReplicas (1) is below keda.minReplicas (2)" --set keda.enabled=true,keda.maxReplicas=1

# Brokers refuse the static name of a killed member with KIP-848, so a pod has none then.
static_names() {
    render "${@:2}" >"$work/static.yaml"
    found=$(grep -c HALLEY__KAFKA__INSTANCE_ID "$work/static.yaml" || true)
    [ "$found" = "$1" ] || {
        say "$found pods with a static name, not $1, with ${*:2}"
        exit 1
    }
}
kip_848='"group.protocol" = "consumer"'
static_names 1 --set replicas=2
static_names 1 --set-string config="# $kip_848"
static_names 0 --set-string config="kafka.properties = { $kip_848 }"
static_names 0 --set-json "env=[{ \"name\": \"HALLEY__KAFKA__PROPERTIES\", \"value\": \"{ ${kip_848//\"/\\\"} }\" }]"
static_names 0 --set staticMembership=false
static_names 1 --set staticMembership=true --set-string config="kafka.properties = { $kip_848 }"
sed 's/  serviceName: /  servicename: /' "$work/default.yaml" >"$work/wrong.yaml"
refused valid "$work/wrong.yaml"
sed 's/maxReplicaCount: 12/maxReplicaCount: twelve/' "$work/everything.yaml" >"$work/wrong.yaml"
refused valid "$work/wrong.yaml"
refused hadolint --config .hadolint.yaml - <<<'FROM debian:latest'
say "all is well"
