import json
import re


def test_the_page_says_what_this_is_and_links_the_documentation(client):
    answer = client.get("/")
    assert answer.headers["content-type"].startswith("text/html")
    assert "keypoints" in answer.text
    assert 'href="/docs"' in answer.text


def test_openapi_describes_every_route_with_examples_and_errors(client):
    document = client.get("/openapi.json").json()
    assert set(document["paths"]) == {"/pose", "/config", "/metrics", "/healthz", "/readyz", "/version"}
    pose = document["paths"]["/pose"]["post"]
    assert set(pose["requestBody"]["content"]) == {"multipart/form-data", "image/*", "application/json"}
    assert {"400", "401", "408", "413", "415", "422", "429", "500", "503", "504"} <= set(pose["responses"])
    assert document["components"]["schemas"]["PoseAnswer"]["examples"]
    assert document["components"]["schemas"]["Problem"]["examples"]
    assert "example" in document["paths"]["/config"]["get"]["responses"]["200"]["content"]["application/json"]
    assert client.get("/docs").status_code == 200


def test_every_reference_of_the_openapi_document_leads_somewhere(client):
    document = client.get("/openapi.json").json()
    referred = set(re.findall(r'"\$ref": "([^"]*)"', json.dumps(document)))
    assert referred
    assert referred <= {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
