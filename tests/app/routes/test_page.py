import json
import re
import tomllib
from pathlib import Path

import pytest

from app.routes.page import FILES, MEDIA_TYPES, SWAGGER_UI
from models import drawing
from models.zoo import read_manifest

ROOT = Path(__file__).parents[3]
STATIC = ROOT / "app" / "static"
MODULES = sorted(name for name in FILES if name.endswith(".js"))
NAMESPACE = "http://www.w3.org/2000/svg"


def test_the_page_says_what_this_is_and_links_the_documentation(client):
    answer = client.get("/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "keypoints" in answer.text
    assert 'href="docs"' in answer.text


def test_the_page_comes_to_whoever_asks_for_json_as_well(client):
    assert client.get("/", headers={"Accept": "application/json"}).status_code == 200


@pytest.mark.parametrize("path", ["/", *(f"/static/{name}" for name in (*sorted(FILES), *SWAGGER_UI))])
def test_every_file_has_headers_that_let_nothing_else_in(client, path: str):
    answer = client.get(path)
    assert answer.status_code == 200
    policy = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
    assert policy.pop("default-src") == policy.pop("base-uri") == policy.pop("form-action") == "'none'"
    assert policy.pop("frame-ancestors") == "'none'"
    assert set(policy.values()) == {"'self'"}
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    head = client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(answer.content))


def test_a_file_that_has_not_changed_is_not_sent_again(client):
    first = client.get("/static/page.css")
    assert first.headers["cache-control"] == "no-cache"
    tag = first.headers["etag"]
    for known in (tag, f'"other", W/{tag}', "*"):
        again = client.get("/static/page.css", headers={"If-None-Match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert client.get("/static/page.css", headers={"If-None-Match": '"other"'}).status_code == 200


@pytest.mark.parametrize(
    "path", ["/static/", "/static/none.js", "/static/..%2fmain.py", "/static/%2e%2e/main.py"]
)
def test_there_is_nothing_beside_the_page_s_files(client, path: str):
    answer = client.get(path)
    assert answer.status_code == 404
    assert answer.json()["code"] == "not_found"


def test_the_page_is_there_while_the_service_is_not(serve):
    client = serve(ready=False)
    assert client.get("/").status_code == client.get("/static/main.js").status_code == 200


@pytest.mark.parametrize("name", sorted(FILES))
def test_no_file_names_another_place(name: str):
    text = FILES[name].content.decode().replace(NAMESPACE, "").replace("http://this-host/pose", "")
    assert not re.findall(r"\w+://|url\(|@import", text)


@pytest.mark.parametrize("name", ["index.html", "docs.html"])
def test_a_page_has_neither_script_nor_style_inside_and_no_handlers(name: str):
    text = FILES[name].content.decode()
    assert re.findall(r"<script(?![^>]* src=)|<style| style=| on[a-z]+=|javascript:", text) == []


def test_the_page_of_the_api_comes_from_here_with_pictures_in_its_style_sheet(client):
    answer = client.get("/docs")
    assert "static/swagger-ui-bundle.js" in answer.text
    policy = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
    assert policy.pop("img-src") == "'self' data: blob:"
    assert set(policy.values()) == {"'self'", "'none'"}
    assert client.get("/redoc").status_code == 404


def test_everything_that_the_files_refer_to_is_there(client):
    pages = FILES["index.html"].content.decode() + FILES["docs.html"].content.decode()
    referred = set(re.findall(r'(?:src|href)="(?!#)([^"]+)"', pages))
    for path in referred:
        assert client.get(f"/{path}").status_code == 200, path
    imported = {
        found for name in MODULES for found in re.findall(r'from "\./([^"]+)"', FILES[name].content.decode())
    }
    assert imported == set(MODULES) - {"main.js", "docs.js"}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_can_be_read_in_one_sitting(name: str):
    assert len(FILES[name].content.splitlines()) < 200


def test_the_page_has_the_colours_of_the_drawn_pictures():
    found = dict(
        re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", FILES["page.css"].content.decode().split("@media")[0])
    )
    wanted = {
        "easy": drawing.GREEN,
        "hard": drawing.ORANGE,
        "extremely-hard": drawing.PURPLE,
        "forced": drawing.BLUE,
        "ink": drawing.DARK,
    }
    assert {name: found[name] for name in wanted} == {
        name: "#{:02x}{:02x}{:02x}".format(*colour) for name, colour in wanted.items()
    }


def test_an_installed_package_has_every_file_of_the_page():
    packaged = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"][
        "app"
    ]
    there = {path for pattern in packaged for path in (ROOT / "app").glob(pattern)}
    assert there >= set(STATIC.iterdir())
    assert {path.name for path in STATIC.iterdir()} == set(FILES)
    assert {path.suffix[1:] for path in STATIC.iterdir()} <= set(MEDIA_TYPES)


def test_openapi_describes_every_route_with_examples_and_errors(client):
    document = client.get("/openapi.json").json()
    assert set(document["paths"]) == {"/pose", "/config", "/metrics", "/healthz", "/readyz", "/version"}
    pose = document["paths"]["/pose"]["post"]
    assert set(pose["requestBody"]["content"]) == {"multipart/form-data", "image/*", "application/json"}
    assert {"400", "401", "408", "413", "415", "422", "429", "500", "503", "504"} <= set(pose["responses"])
    (example,) = document["components"]["schemas"]["PoseAnswer"]["examples"]
    assert example["models"] == read_manifest("embedded").names()
    assert document["components"]["schemas"]["Problem"]["examples"]
    assert "example" in document["paths"]["/config"]["get"]["responses"]["200"]["content"]["application/json"]
    assert client.get("/docs").status_code == 200
    with_token = {
        (path, method)
        for path, routes in document["paths"].items()
        for method, route in routes.items()
        if route.get("security") == [{"bearer": []}, {}]
    }
    assert with_token == {("/pose", "post"), ("/config", "patch")}
    assert document["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"


def test_every_reference_of_the_openapi_document_leads_somewhere(client):
    document = client.get("/openapi.json").json()
    referred = set(re.findall(r'"\$ref": "([^"]*)"', json.dumps(document)))
    assert referred
    assert referred <= {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
