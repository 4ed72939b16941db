"""Renders the Helm chart and the Kustomize folders in every combination of switches, and looks at what comes out.

    deploy_manifests.py helm|kustomize|operator DEFINITIONS SHARDS|refusals

Runs in the Python environment of tests/setup.sh, whose bin folder holds helm and kubectl. The schemas of custom resources are in the
folder $POSTRIDER_VENDOR_SPECS/crds; without them those objects are not checked against a schema, which is said. Exit status 1 and one
line for each thing that is wrong. It applies nothing: no cluster is asked.
"""

import functools
import hashlib
import itertools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

import jsonschema
import kubernetes_validate
import yaml
from kubernetes_validate import utils

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "helm" / "postrider"
BIN = pathlib.Path(sys.executable).parent
KUBERNETES = ["1.30", "1.34"]
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# A stop needs the drain and then this many seconds, see the chart's checks.
MARGIN = 10
# The largest schema file is read once, not once an object.
utils.schema_contents = functools.lru_cache(maxsize=None)(utils.schema_contents)

problems = []


def wrong(where, what):
    problems.append(f"{where}: {what}")


def run(*command):
    # helm lives for a tenth of a second: collecting its garbage would only cost time.
    environment = {**os.environ, "GOGC": "off"}
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, stdin=subprocess.DEVNULL, env=environment)


def template(*arguments):
    return run(BIN / "helm", "template", "mail", CHART, "--namespace", "mail", *arguments)


# Schemas


def closed(schema):
    """A custom resource's schema, in which a misspelt field is an error, as in kubernetes-validate --strict."""
    if isinstance(schema, dict):
        schema = {key: closed(value) for key, value in schema.items()}
        open_to_all = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
        if isinstance(schema.get("properties"), dict) and "type" in schema and not open_to_all:
            schema["additionalProperties"] = False
        if schema.get("x-kubernetes-int-or-string"):
            schema.pop("type", None)
    elif isinstance(schema, list):
        schema = [closed(item) for item in schema]
    return schema


@functools.lru_cache(maxsize=None)
def custom_schemas():
    folder = pathlib.Path(os.environ.get("POSTRIDER_VENDOR_SPECS", "")) / "crds"
    found = {}
    for file in sorted(folder.glob("*.yaml")) if "POSTRIDER_VENDOR_SPECS" in os.environ else []:
        spec = yaml.load(file.read_text(), LOADER)["spec"]
        for version in spec["versions"]:
            schema = closed(version["schema"]["openAPIV3Schema"])
            schema["properties"]["metadata"] = {"type": "object"}
            found[f"{spec['group']}/{version['name']}", spec["names"]["kind"]] = schema
    if not found:
        print("SKIPPED: no schemas of custom resources ($POSTRIDER_VENDOR_SPECS/crds)")
    return found


def validate(where, thing):
    kind = (thing["apiVersion"], thing["kind"])
    try:
        if kind in custom_schemas():
            jsonschema.validate(thing, custom_schemas()[kind])
        elif not re.match(r"(monitoring\.coreos\.com|keda\.sh|rabbitmq\.com)/", kind[0]):
            for version in KUBERNETES:
                kubernetes_validate.validate(thing, version, strict=True)
    except jsonschema.ValidationError as error:
        wrong(where, f"{'.'.join(map(str, error.absolute_path))}: {error.message}")
    except utils.SchemaNotFoundError as error:
        wrong(where, error.message)


# One object


def seconds(text):
    return int(re.fullmatch(r"(\d+)s", text)[1])


def check_pod(where, template_):
    """The restricted level of the pod security standards, the drain, and no secret in the clear."""
    pod = template_["spec"]
    context = pod.get("securityContext", {})
    expected = {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}}
    for key, value in expected.items():
        if context.get(key) != value:
            wrong(where, f"pod securityContext.{key} is {context.get(key)}")
    if pod.get("automountServiceAccountToken") is not False:
        wrong(where, "the pod gets a token")
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(key):
            wrong(where, key)
    for volume in pod.get("volumes", []):
        if set(volume) - {"name", "configMap", "secret", "emptyDir"}:
            wrong(where, f"volume {volume}")
    for container in pod["containers"] + pod.get("initContainers", []):
        own = container.get("securityContext", {})
        for key, value in {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "runAsNonRoot": True, "capabilities": {"drop": ["ALL"]}}.items():
            if own.get(key) != value:
                wrong(where, f"container {container['name']} securityContext.{key} is {own.get(key)}")
        if own.get("runAsUser", 65532) == 0 or own.get("privileged"):
            wrong(where, f"container {container['name']} runs as root")
        if "memory" not in container.get("resources", {}).get("limits", {}):
            wrong(where, f"container {container['name']} has no memory limit")
        for one in container.get("env", []):
            if re.search(r"PASSWORD|SECRET|TOKEN|KEY|__URL$", one["name"]) and "secretKeyRef" not in one.get("valueFrom", {}):
                wrong(where, f"{one['name']} is not taken from a Secret")
        drain = next((seconds(one["value"]) for one in container.get("env", []) if one["name"].endswith("__DRAIN")), None)
        if drain is not None:
            sleep = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
            if pod.get("terminationGracePeriodSeconds", 30) < drain + sleep + MARGIN:
                wrong(where, f"a drain of {drain} s does not fit the grace period")
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                if probe not in container and container in pod["containers"]:
                    wrong(where, f"no {probe}")
        elif container["args"][0] != "topology":
            wrong(where, "no drain is set")


def check_object(where, thing):
    validate(where, thing)
    if thing["kind"] in ("Deployment", "Job"):
        check_pod(where, thing["spec"]["template"])
    if thing["kind"] == "ServiceAccount" and thing.get("automountServiceAccountToken") is not False:
        wrong(where, "hands out a token")
    if thing["kind"] == "Queue" and thing["spec"].get("deletionPolicy") != "retain":
        wrong(where, "deleting the object deletes the mail")
    if thing["kind"] == "Secret":
        wrong(where, "secrets are taken by reference")
    if thing["kind"] == "PrometheusRule":
        ours = yaml.load((DEPLOY / "alerts" / "postrider.rules.yaml").read_text(), LOADER)
        if thing["spec"] != ours:
            wrong(where, "differs from deploy/alerts/postrider.rules.yaml")
    if thing["kind"] == "ScaledObject" and "delay" in json.dumps(thing["spec"]["triggers"]):
        wrong(where, "scales on the delay ladder")


# All objects of one rendering


def labels_of(things, kind):
    return [thing["metadata"].get("labels", {}) for thing in things if thing["kind"] == kind]


def check_together(where, things):
    """What names something else names something that is there."""
    names = {(thing["kind"], thing["metadata"]["name"]) for thing in things}
    if len(names) != len(things):
        wrong(where, "two objects of one kind have the same name")
    pods = [thing["spec"]["template"]["metadata"]["labels"] for thing in things if thing["kind"] in ("Deployment", "Job")]
    jobs = any(thing["kind"] == "Job" for thing in things)

    def selects(selector, candidates):
        return any(selector.items() <= labels.items() for labels in candidates)

    for thing in things:
        spec, name = thing.get("spec", {}), f"{where} {thing['kind']} {thing['metadata']['name']}"
        selector = {
            "Deployment": lambda: spec["selector"]["matchLabels"],
            "PodDisruptionBudget": lambda: spec["selector"]["matchLabels"],
            "NetworkPolicy": lambda: spec["podSelector"]["matchLabels"],
            "Service": lambda: spec["selector"],
        }.get(thing["kind"])
        unused = thing["kind"] == "NetworkPolicy" and not jobs and "topology" in thing["metadata"]["name"]
        if selector and not unused and not selects(selector(), pods):
            wrong(name, "selects no pod")
        if thing["kind"] == "ServiceMonitor" and not selects(spec["selector"]["matchLabels"], labels_of(things, "Service")):
            wrong(name, "selects no service")
        if thing["kind"] in ("ScaledObject", "HorizontalPodAutoscaler"):
            target = ("Deployment", spec["scaleTargetRef"]["name"])
            if target not in names:
                wrong(name, f"scales {target}, which is not there")
            if any("replicas" in other["spec"] for other in things if (other["kind"], other["metadata"]["name"]) == target):
                wrong(name, "fights with spec.replicas")
            for trigger in spec.get("triggers", []):
                reference = trigger.get("authenticationRef")
                if reference and ("TriggerAuthentication", reference["name"]) not in names:
                    wrong(name, "its TriggerAuthentication is not there")
        if thing["kind"] == "Ingress":
            for path in (path for rule in spec["rules"] for path in rule["http"]["paths"]):
                if ("Service", path["backend"]["service"]["name"]) not in names:
                    wrong(name, "leads to no service")
        if thing["kind"] == "Deployment":
            account = spec["template"]["spec"]["serviceAccountName"]
            if account != "default" and ("ServiceAccount", account) not in names:
                wrong(name, f"its service account {account} is not there")
            for volume in spec["template"]["spec"]["volumes"]:
                if "configMap" in volume and ("ConfigMap", volume["configMap"]["name"]) not in names:
                    wrong(name, f"{volume} is not there")


@functools.lru_cache(maxsize=None)
def parsed(text):
    """Most objects of two combinations are the same, letter by letter: parsed and looked at once."""
    things = [thing for thing in yaml.load_all(text, LOADER) if thing]
    for thing in things:
        check_object(f"{thing['kind']} {thing['metadata']['name']} ({hashlib.sha256(text.encode()).hexdigest()[:6]})", thing)
    return things


def look(where, text):
    things = [thing for part in re.split(r"(?m)^---$", text) for thing in parsed(part)]
    check_together(where, things)
    return things


# The checks


# A gateway with all that it can have, and the part of the configuration that this asks for.
GATEWAY = [
    "--set",
    "gateway.enabled=true,gateway.smtp.enabled=true,gateway.autoscaling.enabled=true,gateway.queue.secret=gateway,"
    "gateway.ingress.enabled=true,gateway.ingress.hosts={mail.example.com},gateway.ingress.tlsSecret=tls",
    "--set-literal",
    "config=[gateway.smtp]\ncertificate = '/run/secrets/postrider/tls.crt'\nprivate_key = '/run/secrets/postrider/tls.key'",
]

SWITCHES = {
    "gateway": [[], GATEWAY],
    "topology": [["--set", f"topology.mode={mode},topology.operator.cluster=rabbit"] for mode in ("worker", "job", "operator", "none")],
    "keda": [
        [],
        ["--set", "keda.enabled=true,keda.prometheus.serverAddress=http://prometheus:9090"],
        ["--set", "keda.enabled=true,keda.source=queues"],
    ],
    "policy": [[], ["--set", "networkPolicy.enabled=false"]],
    "monitor": [[], ["--set", "serviceMonitor.enabled=true"]],
    "grafana": [[], ["--set", "alerts.enabled=true,dashboard.enabled=true"]],
}
# The values of an installation that uses all of the chart, with everything that can be switched on beside the three that exclude each other.
MORE = ["--values", str(ROOT / "tests" / "components" / "deploy_values.yaml")]


def combinations():
    yield from itertools.product(*SWITCHES.values())
    for choice in itertools.product(SWITCHES["gateway"], SWITCHES["topology"], SWITCHES["keda"]):
        yield (*choice, SWITCHES["monitor"][1], SWITCHES["grafana"][1], MORE)


def check_helm():
    lint = run(BIN / "helm", "lint", "--strict", CHART)
    if lint.returncode:
        wrong("helm lint", lint.stdout + lint.stderr)
    every = list(combinations())

    def render(combination):
        return template(*itertools.chain(*combination))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for combination, done in zip(every, pool.map(render, every)):
            where = " ".join(itertools.chain(*combination)) or "defaults"
            if done.returncode:
                wrong(where, done.stderr)
                continue
            kinds = {thing["kind"] for thing in look(where, done.stdout)}
            for kind, word in (("ScaledObject", "keda"), ("ServiceMonitor", "serviceMonitor"), ("PrometheusRule", "alerts"), ("Ingress", "ingress"), ("HorizontalPodAutoscaler", "autoscaling"), ("Job", "mode=job"), ("Queue", "mode=operator")):
                if (kind in kinds) != (word in where):
                    wrong(where, f"{kind}: {kind in kinds}")
    print(f"{len(every)} combinations, {parsed.cache_info().currsize} different objects")


REFUSED = {
    "workers.drainSeconds=36": "terminationGracePeriodSeconds",
    "workers.terminationGracePeriodSeconds=34": "terminationGracePeriodSeconds",
    "gateway.preStopSeconds=11": "gateway.terminationGracePeriodSeconds",
    "gateway.ingress.enabled=true": "tlsSecret",
    "gateway.autoscaling.enabled=true,gateway.autoscaling.minReplicas=11": "minReplicas",
    "gateway.smtp.enabled=true": "certificate",
    "keda.enabled=true": "serverAddress",
    "keda.enabled=true,keda.minReplicas=0,keda.prometheus.serverAddress=http://p:9090": "minReplicas",
    "topology.mode=operator": "topology.operator.cluster",
    "topology.mode=worke": "topology",
    "workers.replica=3": "replica",
    "queue.url=amqp://a:b@c": "url",
    "config=[transport.relay]\npassword = \"x\"": "in the clear",
    "config=[transport.ses]\nsecret_access_key = 'x'": "in the clear",
    "config=[transport.relay": "no TOML",
    "config=[worker]\ndrain = \"60s\"": "drain",
    "config=[queue]\nurl = \"amqp://rabbitmq\"": "queue.url",
    "admin.port=80": "port",
    'env=[{"name": "RELAY_PASSWORD", "value": "x"}]': "in the clear",
    "env[0].name=A,env[0].value=x,env[0].secret=b,env[0].key=c": "env",
}


def check_refusals():
    for setting, reason in REFUSED.items():
        way = {"config": "--set-literal", "env": "--set-json"}.get(setting.split("=")[0], "--set")
        done = template(way, setting)
        if done.returncode == 0:
            wrong(setting, "is rendered")
        elif reason not in done.stderr:
            wrong(setting, f"is refused without naming {reason}: {done.stderr}")
    print(f"{len(REFUSED)} mistakes refused")


def worker_pod(things):
    """The worker's pod, without what the two ways to write it must differ in."""
    pod = next(thing for thing in things if thing["kind"] == "Deployment" and thing["metadata"]["name"].endswith("worker"))
    spec = pod["spec"]["template"]["spec"]
    text = json.dumps({**pod["spec"], "template": spec}, sort_keys=True)
    text = re.sub(r'"mail-postrider', '"postrider', text)
    text = re.sub(r'"app.kubernetes.io/instance": "\w+"', '"app.kubernetes.io/instance": "*"', text)
    return json.loads(re.sub(r'"configMap": {"name": "[\w-]+"}', '"configMap": {"name": "*"}', text))


def check_kustomize():
    def build(folder):
        done = run(BIN / "kubectl", "kustomize", folder)
        if done.returncode:
            wrong(folder, done.stderr)
        return look(str(folder), done.stdout)

    for overlay in sorted((DEPLOY / "kustomize" / "overlays").iterdir()):
        build(overlay)
    base = build(DEPLOY / "kustomize" / "base")
    chart = list(yaml.load_all(template().stdout, LOADER))
    ours, theirs = worker_pod(base), worker_pod(chart)
    for kind in ("containers", "initContainers"):
        for our, their in zip(ours["template"].get(kind, []), theirs["template"].get(kind, [])):
            our["image"] = their["image"]
    for key in sorted(set(ours) | set(theirs)):
        if ours.get(key) != theirs.get(key):
            wrong("base", f"{key} differs from the chart's: {ours.get(key)} and {theirs.get(key)}")

    if (DEPLOY / "kustomize" / "base" / "postrider.toml").read_text() != yaml.load((CHART / "values.yaml").read_text(), LOADER)["config"]:
        wrong("base", "its postrider.toml differs from the chart's config")

    # Every component with every other that it can stand beside. Kustomize takes only relative paths.
    components = sorted(path.name for path in (DEPLOY / "kustomize" / "components").iterdir())
    either = [{"keda-backlog", "keda-queues"}, {"topology-job", "topology-operator"}]
    folder = pathlib.Path(tempfile.mkdtemp(prefix="postrider-kustomize-"))
    count = 0
    try:
        others = [name for name in components if not any(name in pair for pair in either)]
        sets = [[*left, *extra] for left in itertools.product(*([None, *sorted(pair)] for pair in either)) for extra in ([], others)]
        for number, names in enumerate(sets):
            place = folder / str(number)
            place.mkdir()
            relative = pathlib.Path(os.path.relpath(DEPLOY / "kustomize", place.resolve()))
            text = {"resources": [str(relative / "base")], "components": [str(relative / "components" / name) for name in names if name]}
            (place / "kustomization.yaml").write_text(yaml.safe_dump(text))
            build(place)
            count += 1
    finally:
        shutil.rmtree(folder)
    print(f"{count} sets of components, {len(list((DEPLOY / 'kustomize' / 'overlays').iterdir()))} overlays, {parsed.cache_info().currsize} different objects")


def check_operator(file, shards):
    """The chart's objects for the topology operator say the same as `postrider topology export`."""
    expected = json.loads(pathlib.Path(file).read_text())
    done = template("--set", f"topology.mode=operator,topology.operator.cluster=rabbit,queue.shards={shards}")
    things = look("operator", done.stdout)
    vhost, found = "/", {"exchanges": [], "queues": [], "bindings": []}
    for spec in (thing["spec"] for thing in things if thing["kind"] == "Exchange"):
        found["exchanges"].append({"name": spec["name"], "vhost": spec["vhost"], "type": spec["type"], "durable": spec["durable"], "auto_delete": spec["autoDelete"], "internal": False, "arguments": spec.get("arguments", {})})
    for spec in (thing["spec"] for thing in things if thing["kind"] == "Queue"):
        found["queues"].append({"name": spec["name"], "vhost": spec["vhost"], "durable": spec["durable"], "auto_delete": spec["autoDelete"], "arguments": {"x-queue-type": spec["type"], **spec["arguments"]}})
    for spec in (thing["spec"] for thing in things if thing["kind"] == "Binding"):
        found["bindings"].append({"source": spec["source"], "vhost": spec["vhost"], "destination": spec["destination"], "destination_type": spec["destinationType"], "routing_key": spec["routingKey"], "arguments": {}})
    for kind, theirs in found.items():
        def lines(things):
            return {json.dumps(thing, sort_keys=True) for thing in things}
        for line in sorted(lines(expected[kind]) ^ lines(theirs)):
            wrong(kind, f"only on one side: {line}")
        if not theirs or len(theirs) != len(expected[kind]):
            wrong(kind, f"{len(theirs)} objects, {len(expected[kind])} wanted")
    print(f"{sum(map(len, found.values()))} objects for {vhost}")


CHECKS = {"helm": check_helm, "refusals": check_refusals, "kustomize": check_kustomize, "operator": check_operator}

if __name__ == "__main__":
    CHECKS[sys.argv[1]](*sys.argv[2:])
    print("\n".join(dict.fromkeys(problems)))
    sys.exit(1 if problems else 0)
