"""Pages a person reads: one file each, pictures inside, light and dark, fit to print."""

import base64
from typing import Any, Final

import jinja2

NOTICE: Final = (
    "Research use only. Not a medical device; not for diagnosis, treatment or triage of patients."
)


def render(package: str, template: str, **values: Any) -> bytes:  # noqa: ANN401 - of the template
    """Render a template of a package; an HTML one extends `page.html.j2` and needs `title`."""
    loaders = [jinja2.PackageLoader(name) for name in (package, "btray.core")]
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(loaders),
        autoescape=template.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(notice=NOTICE, **values).encode()


def data_uri(data: bytes, kind: str = "png") -> str:
    """Return an encoded picture as a URI that holds it."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
