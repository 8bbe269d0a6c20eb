"""Check a model and an address, and serve captions. Imports Ray and torch after the checks."""

import argparse

from app.errors import UserError
from app.free_port import require_free_port
from app.jobs.trained_model import find_configured_model


def run_serve(arguments: argparse.Namespace) -> None:
    """Run the command `serve` until a signal stops it.

    Raises UserError if there is no such model, or if the port is taken.
    """
    model = find_configured_model(arguments.model, arguments.config, arguments.overrides)
    require_free_port(arguments.host, arguments.port)
    try:
        from app.jobs.serve_application import serve_model
    except ImportError as error:
        raise UserError(
            f"serve needs Ray Serve ({error}): install it with pip install 'svgscribe[serve]'"
        ) from error
    serve_model(model, host=arguments.host, port=arguments.port)
