#!/usr/bin/env python3
"""Runs `halley check` with the configuration and the environment that a rendered chart gives its pods.

rendered.py FILE. It uses the binary of target/debug or target/release, and says so if there is none. Secrets that
the chart refers to have no value here, so only literal variables are set, and files of volumes are left out.
"""

import json
import os
import re
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
BINARIES = [os.path.join(HERE, "../../target", profile, "halley") for profile in ("debug", "release")]
IN_VOLUMES = re.compile(r"FILE|SOCKET|STATE_DIR")


def documents(path):
    """The resources as JSON, by way of the YAML parser that the models come with."""
    models = os.environ.get("HALLEY_MODELS") or os.path.dirname(os.path.dirname(subprocess.run(
        ["sh", "-c", "command -v helm"], capture_output=True, text=True, check=True).stdout.strip())) + "/models"
    script = ("import('yaml').then(({parseAllDocuments: all}) => console.log(JSON.stringify("
              "all(require('fs').readFileSync(process.argv[1], 'utf8')).map(d => d.toJS()))))")
    out = subprocess.run(["node", "-e", script, os.path.abspath(path)], cwd=models, capture_output=True, text=True, check=True)
    return [document for document in json.loads(out.stdout) if document]


def main():
    binary = next((path for path in BINARIES if os.path.exists(path)), None)
    if binary is None:
        print("deploy: NOT CHECKED: the pods' configuration; build halley first (cargo build)")
        return
    resources = documents(sys.argv[1])
    of = {resource["kind"]: resource for resource in resources}
    config = of["ConfigMap"]["data"]["halley.toml"]
    # Files of Secrets are not here.
    config = re.sub(r"(?m)^(token_file|tls[._]\w+) = .*\n", "", config).replace('listen = "0.0.0.0:9094"', "")
    container = of["StatefulSet"]["spec"]["template"]["spec"]["containers"][0]
    variables = {
        entry["name"]: entry["value"]
        for entry in container["env"]
        if "value" in entry and not IN_VOLUMES.search(entry["name"])
    }
    variables["HALLEY__KAFKA__INSTANCE_ID"] = "gateway-halley-0"
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(config)
        file.flush()
        environment = {"PATH": os.environ["PATH"], **variables}
        checked = subprocess.run([binary, "check", "--config", file.name], env=environment, capture_output=True, text=True)
    if checked.returncode != 0:
        sys.exit(f"deploy: halley check refuses the pods' configuration:\n{checked.stderr}{checked.stdout}")
    print("deploy: halley check accepts the pods' configuration")


main()
