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
: >"$work/default-values.yaml"
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
refused helm template gateway "$chart" --kube-version "$version" --set replica=3
refused helm template gateway "$chart" --kube-version "$version" --set shutdownGraceSeconds=never
refused helm template gateway "$chart" --kube-version "$version" --set env[0].secret=x
refused helm template gateway examples/deploy/helm/halley --kube-version "$version" --set prometheusRule.enabled=true
sed 's/  serviceName: /  servicename: /' "$work/default.yaml" >"$work/wrong.yaml"
refused valid "$work/wrong.yaml"
sed 's/maxReplicaCount: 12/maxReplicaCount: twelve/' "$work/everything.yaml" >"$work/wrong.yaml"
refused valid "$work/wrong.yaml"
refused hadolint --config .hadolint.yaml - <<<'FROM debian:latest'
say "all is well"
