"""deploy/compose.yaml, as far as it can be checked without a container engine."""

import re
from urllib.parse import urlsplit

from app.settings import Settings
from tests.deploy.conftest import DEPLOY, documents


def services() -> dict:
    return documents("compose.yaml")[0]["services"]


def mounts(service: str) -> dict[str, str]:
    """Path in the container -> path here, or the name of a volume."""
    pairs = [volume.split(":")[:2] for volume in services()[service]["volumes"]]
    return {there: here for here, there in pairs}


def test_the_service_is_built_from_the_projects_dockerfile():
    build = services()["dynpose"]["build"]
    dockerfile = (DEPLOY / build["context"] / "Dockerfile").read_text()
    for argument in build["args"]:
        assert re.search(rf"^ARG {argument}=", dockerfile, re.MULTILINE)


def test_every_other_image_is_one_release():
    for name, service in services().items():
        assert name == "dynpose" or re.fullmatch(r"[a-z/]+:v?\d+\.\d+\.\d+", service["image"])


def test_what_is_mounted_is_there_and_only_read():
    volumes = documents("compose.yaml")[0]["volumes"]
    for service in services().values():
        for volume in service.get("volumes", []):
            here, _, *mode = volume.split(":")
            assert here in volumes or ((DEPLOY / here).exists() and mode == ["ro"])


def test_each_port_is_published_once_and_only_the_services_own_to_others():
    published = {name: [port.rsplit(":", 1)[0] for port in it["ports"]] for name, it in services().items()}
    assert published == {"dynpose": ["8000"], "prometheus": ["127.0.0.1:9090"], "grafana": ["127.0.0.1:3000"]}


def test_prometheus_scrapes_the_service_and_grafana_asks_prometheus():
    (config,) = documents("prometheus", "prometheus.yml")
    (target,) = config["scrape_configs"][0]["static_configs"][0]["targets"]
    assert target == f"dynpose:{Settings.model_fields['port'].default}"
    assert set(config["rule_files"]) <= {path.rsplit("/", 1)[1] for path in mounts("prometheus")}
    (source,) = documents("grafana", "provisioning", "datasources", "prometheus.yaml")[0]["datasources"]
    url = urlsplit(source["url"])
    assert any(port.endswith(f":{url.port}") for port in services()[url.hostname]["ports"])
    assert source["jsonData"]["timeInterval"] == config["global"]["scrape_interval"]


def test_grafana_finds_the_dashboard():
    (provider,) = documents("grafana", "provisioning", "dashboards", "dynpose.yaml")[0]["providers"]
    folder = provider["options"]["path"]
    home = services()["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home.startswith(folder)
    assert (DEPLOY / mounts("grafana")[folder] / home.rsplit("/", 1)[1]).is_file()


def test_the_service_is_given_the_time_that_it_takes_to_end():
    period = services()["dynpose"]["stop_grace_period"]
    fields = Settings.model_fields
    assert (
        int(period.removesuffix("s")) > fields["drain_delay_s"].default + fields["shutdown_grace_s"].default
    )
