"""GET /: a plain page for people."""

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

router = APIRouter(include_in_schema=False)

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>DynPose</title>
<style>
  :root { color-scheme: light dark }
  body { font: 1rem/1.5 system-ui, sans-serif; max-width: 42rem; margin: 3rem auto; padding: 0 1rem }
  pre { padding: .75rem; overflow-x: auto; border: 1px solid #8886; border-radius: .5rem }
</style>
<h1>DynPose</h1>
<p>This service finds people in pictures and returns their 17 COCO keypoints. A light router scores how difficult each
person is, and only the share <i>p</i> that profits most goes to the large network.</p>
<pre>curl -F images=@photo.jpg localhost:8000/pose
curl -F images=@photo.jpg 'localhost:8000/pose?render=overlay' -o overlay.png
curl -X PATCH -H 'Content-Type: application/json' -d '{"p": 0.25}' localhost:8000/config</pre>
<p><a href="/docs">Documentation of every request and answer</a> ·
<a href="/config">the split in force</a> · <a href="/metrics">metrics</a> · <a href="/version">version</a></p>
</html>
"""


@router.get("/", response_class=HTMLResponse)
async def page() -> HTMLResponse:
    return HTMLResponse(PAGE)
