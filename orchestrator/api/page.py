"""
`GET /` for browsers, and the files that its page consists of, under `/web`.

The page loads nothing from anywhere else and runs no script but its own files: what a document or an
answer says can never be executed, however it is worded.
"""

from pathlib import Path

from fastapi import APIRouter, Request, Response
from starlette.responses import FileResponse, PlainTextResponse
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

FOLDER = Path(__file__).parent.parent / "web"

# Styles that scripts set through the DOM need no permission; those in markup have none.
POLICY = (
    "default-src 'none'; script-src 'self'; worker-src 'self'; style-src 'self'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    # Asked for again each time, and answered by 304: a new version is never mixed with an old one.
    "Cache-Control": "no-cache",
}
WELCOME = """\
Tidegate answers questions over your PDFs, with cited pages. In a browser this is a page.

  POST /upload               multipart, field `file`
  GET  /documents            what is there, and how far it is
  POST /ask                  {"question": "..."}
  POST /v1/chat/completions  the same, for OpenAI clients
  GET  /status               what the service is doing
  GET  /openapi.json         every route
"""


class PageRoutes:
    """The page's door."""

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter()
        router.add_api_route("/", self.page, methods=["GET", "HEAD"], include_in_schema=False)
        return router

    async def page(self, request: Request) -> Response:
        """Give browsers the page, and everybody else a list of routes."""
        vary = {"Vary": "Accept"}
        if "text/html" not in request.headers.get("accept", ""):
            return PlainTextResponse(WELCOME, headers=vary)
        return FileResponse(FOLDER / "index.html", headers={**HEADERS, **vary})


class PageFiles(StaticFiles):
    """
    Scripts, styles and vendored libraries, with the page's headers.

    Attributes:
        path: Where they are, and what they count as in metrics and logs.
    """

    path = "/web"

    def __init__(self) -> None:
        super().__init__(directory=FOLDER)

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Give one file under the policy."""
        scope["route"] = self
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS)
        return response
