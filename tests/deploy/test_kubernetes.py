"""The manifests of deploy/kubernetes: whole, of one mind with each other and with the service."""

import pytest
from starlette.routing import Route

from app.routes import routers
from app.settings import Settings
from tests.deploy.conftest import DEPLOY, documents

FOLDER = DEPLOY / "kubernetes"
KUSTOMIZATION = documents("kubernetes", "kustomization.yaml")[0]


def manifests() -> dict[tuple[str, str], dict]:
    """(kind, name) -> manifest of all that `kubectl apply -k` sends, but for the ConfigMap."""
    found = [it for file in KUSTOMIZATION["resources"] for it in documents("kubernetes", file)]
    return {(it["kind"], it["metadata"]["name"]): it for it in found}


DEPLOYMENT = manifests()["Deployment", "dynpose"]
POD = DEPLOYMENT["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]


def config() -> dict[str, str]:
    (generated,) = KUSTOMIZATION["configMapGenerator"]
    assert CONTAINER["envFrom"] == [{"configMapRef": {"name": generated["name"]}}]
    return dict(literal.split("=", 1) for literal in generated["literals"])


def test_no_manifest_is_forgotten():
    assert {path.name for path in FOLDER.glob("*.yaml")} == {
        "kustomization.yaml",
        *KUSTOMIZATION["resources"],
    }


def test_the_configmap_has_settings_of_the_service_with_values_it_takes():
    given = {name.lower(): value for name, value in config().items()}
    assert "p" in given
    assert given.keys() | {env["name"].lower() for env in CONTAINER["env"]} <= set(Settings.model_fields)
    Settings(_env_file=None, **given)


def test_a_pod_may_take_as_long_as_the_service_to_end():
    stop = CONTAINER["lifecycle"]["preStop"]["sleep"]["seconds"]
    seconds = stop + float(config()["DRAIN_DELAY_S"]) + float(config()["SHUTDOWN_GRACE_S"])
    assert POD["terminationGracePeriodSeconds"] > seconds


@pytest.mark.parametrize(("probe", "path"), [("readinessProbe", "/readyz"), ("livenessProbe", "/healthz")])
def test_probes_ask_what_the_service_answers(probe: str, path: str):
    routes = {route.path for router in routers for route in router.routes if isinstance(route, Route)}
    assert CONTAINER[probe]["httpGet"] == {"path": path, "port": "http"}
    assert path in routes
    assert {"name": "http", "containerPort": Settings.model_fields["port"].default} in CONTAINER["ports"]


def test_the_process_is_nobody_and_writes_only_to_tmp():
    assert POD["securityContext"]["runAsNonRoot"]
    assert POD["securityContext"]["runAsUser"] > 0
    assert CONTAINER["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    (mount,) = CONTAINER["volumeMounts"]
    (volume,) = POD["volumes"]
    assert mount == {"name": volume["name"], "mountPath": "/tmp"}
    assert "emptyDir" in volume


def test_everything_selects_the_pods_and_the_monitor_one_service():
    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    all_of_them = manifests()
    selected = [it["spec"]["selector"] for (kind, _), it in all_of_them.items() if kind == "Service"]
    selected += [DEPLOYMENT["spec"]["selector"]["matchLabels"]]
    selected += [all_of_them["PodDisruptionBudget", "dynpose"]["spec"]["selector"]["matchLabels"]]
    assert selected == [labels] * 4
    monitor = all_of_them["ServiceMonitor", "dynpose"]["spec"]
    wanted = monitor["selector"]["matchLabels"]
    services = {name: it for (kind, name), it in all_of_them.items() if kind == "Service"}
    found = [name for name, it in services.items() if it["metadata"].get("labels") == wanted]
    assert found == ["dynpose"]  # its name is the job of the rules
    assert {port["name"] for port in services["dynpose"]["spec"]["ports"]} == {
        monitor["endpoints"][0]["port"]
    }
    assert services["dynpose-pods"]["spec"]["clusterIP"] == "None"


def test_the_scaler_alone_says_how_many_pods_there_are():
    scaler = manifests()["ScaledObject", "dynpose"]["spec"]
    assert scaler["scaleTargetRef"]["name"] == DEPLOYMENT["metadata"]["name"]
    assert "replicas" not in DEPLOYMENT["spec"]
    assert {trigger["metricType"] for trigger in scaler["triggers"]} <= {
        "Value",
        "Utilization",
    }  # no AverageValue: none grows with the pods
    assert scaler["minReplicaCount"] > manifests()["PodDisruptionBudget", "dynpose"]["spec"]["maxUnavailable"]


@pytest.mark.parametrize("kind", ["Deployment", "Service", "PodDisruptionBudget"])
def test_manifests_keep_to_the_schemas_of_kubernetes(kind: str):
    """Those of KEDA and of the Prometheus operator are not among them."""
    schemas = pytest.importorskip(
        "kubernetes_validate", reason="needs the extra `kubernetes`, for the schemas"
    )
    for (its, _), manifest in manifests().items():
        if its == kind:
            schemas.validate(manifest, "1.34", strict=True)
