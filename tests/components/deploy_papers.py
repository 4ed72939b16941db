"""Holds metrics.toml, the dashboard, the alerts, the runbook and compose.yaml to each other.

    deploy_papers.py metrics|queries|alerts|compose

Exit status 1 and one line for each thing that is wrong. It knows PromQL only as far as names, labels and matchers go; promtool knows the rest.
"""

import json
import pathlib
import re
import sys
import tomllib

import compose_spec
import yaml

DEPLOY = pathlib.Path(__file__).resolve().parents[2] / "deploy"
METRICS = tomllib.loads((DEPLOY / "metrics.toml").read_text())
ALERTS = yaml.safe_load((DEPLOY / "alerts" / "postrider.rules.yaml").read_text())
# What Prometheus adds to every series that it scrapes.
ADDED = {"instance", "job", "namespace"}
SUFFIXES = {"histogram": ["_bucket", "_sum", "_count"], "counter": [""], "gauge": [""]}

problems = []


def wrong(where, what):
    problems.append(f"{where}: {what}")


def check_metrics():
    """The registry itself: names derived by the rules, labels bounded."""
    seen = set()
    for one in METRICS["instrument"]:
        name = one["name"]
        if not re.fullmatch(r"postrider(\.[a-z]+(_[a-z]+)*)+", name):
            wrong(name, "no dotted name below postrider.")
        unit = {"s": "_seconds", "1": "_ratio", "By": "_bytes"}.get(one["unit"])
        if unit is None and not re.fullmatch(r"\{[a-z]+\}", one["unit"]):
            wrong(name, f"unit {one['unit']}")
        derived = name.replace(".", "_") + (unit or "") + ("_total" if one["kind"] == "counter" else "")
        if one["prometheus"] != derived:
            wrong(name, f"is {derived} on the Prometheus page, not {one['prometheus']}")
        for key in {name, derived} & seen:
            wrong(name, f"{key} twice")
        seen |= {name, derived}
        if one["kind"] not in SUFFIXES:
            wrong(name, f"kind {one['kind']}")
        if (one["kind"] == "histogram") != ("buckets" in one) or sorted(one.get("buckets", [])) != one.get("buckets", []):
            wrong(name, "a histogram has rising buckets, others have none")
        if not one["help"] or one["help"].endswith("."):
            wrong(name, "help is one phrase without a full stop")
        series = 1
        for label, kind in one["labels"].items():
            values = METRICS["label"].get(kind)
            if values is None:
                wrong(name, f"label {label} is of no known kind {kind}")
                continue
            if re.search("domain|address|recipient|tenant|job|id$", label):
                wrong(name, f"label {label} is not bounded")
            series *= len(values["values"]) if "values" in values else values["values_max"]
        if series > 1_000_000:
            wrong(name, f"{series} series")
    used = {kind for one in METRICS["instrument"] for kind in one["labels"].values()}
    for kind in METRICS["label"]:
        if kind not in used:
            wrong(kind, "a label that no instrument has")
    print(f"{len(METRICS['instrument'])} instruments")


def series():
    """Every series name with its labels: label to fixed values, or None where they come from the configuration."""
    known = {"ALERTS": dict.fromkeys(["alertname", "alertstate"])}
    for one in METRICS["instrument"]:
        labels = {label: METRICS["label"][kind].get("values") for label, kind in one["labels"].items()}
        for suffix in SUFFIXES[one["kind"]]:
            known[one["prometheus"] + suffix] = {**labels, **({"le": None} if suffix == "_bucket" else {})}
    for one in METRICS["external"]:
        known[one["prometheus"]] = dict.fromkeys(one["labels"])
    return known


WORDS = {"by", "on", "or", "and", "unless", "ignoring", "without", "offset", "bool", "group_left", "group_right"}


def check_query(where, query):
    known, found = series(), set()
    text = re.sub(r"\$__\w+", "5m", query)
    for name, matchers in re.findall(r"([a-zA-Z_:][\w:]*)\{([^}]*)\}", text):
        for label, sign, value in re.findall(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"', matchers):
            values = known.get(name, {}).get(label, ())
            if values == () and label not in ADDED:
                wrong(where, f"{name} has no label {label}")
            elif values and sign == "=" and value not in values:
                wrong(where, f"{label} of {name} is never {value}")
    text = re.sub(r"\{[^}]*\}", "", re.sub(r'"[^"]*"', '""', text))
    grouped = [label.strip() for part in re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", text) for label in part.split(",")]
    text = re.sub(r"\b(?:by|on)\s*\([^)]*\)|\[[^\]]*\]", " ", text)
    for name in re.findall(r"(?<![\w.])[a-zA-Z_:][\w:]*\b(?!\s*\()", text):
        if name not in WORDS:
            found.add(name)
            if name not in known:
                wrong(where, f"asks for {name}, which nobody reports")
    labels = ADDED.union(*(known.get(name, {}) for name in found))
    for label in grouped:
        if label not in labels:
            wrong(where, f"groups by {label}, which {', '.join(sorted(found))} does not have")
    if not found:
        wrong(where, f"asks for nothing: {query}")
    return found


def check_queries():
    asked, count = set(), 0

    def look(where, query):
        nonlocal asked, count
        asked |= check_query(where, query)
        count += 1

    dashboard = json.loads((DEPLOY / "dashboards" / "postrider.json").read_text())
    ids = [panel["id"] for panel in dashboard["panels"]]
    if len(ids) != len(set(ids)):
        wrong("dashboard", "two panels with one id")
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            look(f"dashboard, {panel['title']}", target["expr"])
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            name, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["definition"]).groups()
            if label not in series().get(name, {}):
                wrong(f"dashboard, variable {variable['name']}", variable["definition"])
    for annotation in dashboard["annotations"]["list"]:
        look("dashboard, annotations", annotation["expr"])
    for group in ALERTS["groups"]:
        for rule in group["rules"]:
            look(rule["alert"], rule["expr"])
    for file in [*DEPLOY.glob("kustomize/components/*/scaled-object.yaml"), DEPLOY / "kustomize" / "overlays" / "production" / "kustomization.yaml"]:
        for query in re.findall(r"(?m)^\s*query: (.+)$", file.read_text()):
            look(str(file), query)
    template = (DEPLOY / "helm" / "postrider" / "templates" / "keda.yaml").read_text()
    for query in re.findall(r'printf "(sum.+?)" \(', template):
        look("helm keda", query.replace("%s", ""))
    for one in METRICS["instrument"]:
        if not any(one["prometheus"] + suffix in asked for suffix in SUFFIXES[one["kind"]]):
            wrong(one["name"], "neither the dashboard nor an alert asks for it")
    print(f"{count} queries")


def minutes(text):
    return sum(int(number) * {"s": 1 / 60, "m": 1, "h": 60, "d": 1440}[unit] for number, unit in re.findall(r"(\d+)([smhd])", text))


def check_alerts():
    """Each alert is quiet, fires and clears in one test, and has a section of the runbook that names a command."""
    tests = yaml.safe_load((DEPLOY / "alerts" / "postrider.test.yaml").read_text())["tests"]
    sections = dict(re.findall(r"(?ms)^## (\w+)\n(.*?)(?=^## |\Z)", (DEPLOY / "runbook.md").read_text()))
    rules = [rule for group in ALERTS["groups"] for rule in group["rules"]]
    for rule in rules:
        name = rule["alert"]
        if rule["annotations"].get("runbook") != f"deploy/runbook.md#{name.lower()}":
            wrong(name, "links to no section of the runbook")
        if "```sh\n" not in sections.get(name, ""):
            wrong(name, "has no section of the runbook with a command")
        if rule["labels"].get("severity") not in ("warning", "critical") or not rule["annotations"].get("summary"):
            wrong(name, "no severity or no summary")
        whole = False
        for test in tests:
            cases = sorted((minutes(case["eval_time"]), bool(case.get("exp_alerts"))) for case in test["alert_rule_test"] if case["alertname"] == name)
            states = "".join("x" if fires else "." for _, fires in cases)
            whole = whole or ".x." in states
        if not whole:
            wrong(name, "no test in which it is quiet, fires and clears")
    for section in sections:
        if section.startswith("Postrider") and section not in {rule["alert"] for rule in rules}:
            wrong("runbook", f"{section} is no alert")
    print(f"{len(rules)} alerts")


def check_compose():
    text = (DEPLOY / "compose.yaml").read_text()
    try:
        # The Compose specification: keys, values, and whether named volumes are declared.
        compose_spec.PyOptions(apply_merge=True).from_yaml(text).validate()
    except ValueError as error:
        wrong("compose.yaml", error)
    compose = yaml.safe_load(text)
    services, volumes = compose["services"], set(compose.get("volumes", {}))
    for name in ("rabbitmq", "redis", "worker", "gateway", "collector", "catcher"):
        if name not in services:
            wrong("compose", f"no {name}")
    for name, service in services.items():
        if ":" not in service.get("image", "") or service["image"].endswith(":latest"):
            wrong(name, "its image is not pinned")
        for other, how in service.get("depends_on", {}).items():
            if other not in services:
                wrong(name, f"depends on {other}")
            if how["condition"] == "service_healthy" and services.get(other, {}).get("healthcheck", {}).get("disable", "healthcheck" not in services.get(other, {})):
                wrong(name, f"waits for the health of {other}, which has no check")
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith(".") and not (DEPLOY / source).is_file():
                wrong(name, f"{source} is not there")
            elif not source.startswith(".") and source not in volumes:
                wrong(name, f"{source} is no volume")
        for port in service.get("ports", []):
            if not port.startswith("127.0.0.1:"):
                wrong(name, f"{port} is open to everybody")
        if name != "rabbitmq" and (not service.get("read_only") or service.get("cap_drop") != ["ALL"]):
            wrong(name, "is not hardened")
        if "build" in service:
            context = DEPLOY / service["build"]["context"]
            if not (context / service["build"]["dockerfile"]).is_file():
                wrong(name, "its Dockerfile is not there")
    for name in ("worker", "gateway"):
        service = services[name]
        drain, grace = service["environment"][f"POSTRIDER_{name.upper()}__DRAIN"], service["stop_grace_period"]
        if minutes(grace) * 60 < minutes(drain) * 60 + 10:
            wrong(name, "its drain does not fit its grace period")
    if "noeviction" not in services["redis"]["command"] or "--appendonly" not in services["redis"]["command"]:
        wrong("redis", "may forget")
    yaml.safe_load((DEPLOY / "compose" / "collector.yaml").read_text())
    print(f"{len(services)} services")


CHECKS = {"metrics": check_metrics, "queries": check_queries, "alerts": check_alerts, "compose": check_compose}

if __name__ == "__main__":
    CHECKS[sys.argv[1]]()
    print("\n".join(dict.fromkeys(problems)))
    sys.exit(1 if problems else 0)
