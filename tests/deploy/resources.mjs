// Checks the resources of KEDA and of the Prometheus operator in a file of manifests: node resources.mjs FILE.
// It runs next to node_modules. kubeconform checks the resources of Kubernetes itself.
import { readFileSync } from "node:fs";
import { parseAllDocuments } from "yaml";

const models = {
  "keda.sh/v1alpha1": "@kubernetes-models/keda/keda.sh/v1alpha1/",
  "monitoring.coreos.com/v1": "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/",
};

for (const document of parseAllDocuments(readFileSync(process.argv[2], "utf8"))) {
  const resource = document.toJS();
  const folder = models[resource?.apiVersion];
  if (!folder) continue;
  const { [resource.kind]: Model } = await import(folder + resource.kind);
  new Model(resource).validate();
  console.log(`${resource.kind} ${resource.metadata.name} is valid`);
}
