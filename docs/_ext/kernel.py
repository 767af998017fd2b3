"""Run as each page's kernel starts: its shell cells call seepage in this process, which saves a start for each."""

import contextlib
import io
import shlex
from unittest import mock

from IPython import get_ipython


def _bash(line: str, cell: str) -> None:
    """Run each command of a cell and print what it says on stdout; one that fails fails the page."""
    from seepage.cli import run

    # In a kernel rich would show a table as HTML, which no shell does.
    plain = mock.patch("rich.console._is_jupyter", return_value=False)
    for command in cell.replace("\\\n", " ").strip().splitlines():
        program, *arguments = shlex.split(command)
        out, err = io.StringIO(), io.StringIO()
        with plain, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run(arguments) if program == "seepage" else 127
        if code != 0:
            raise RuntimeError(f"{command}: exit code {code}: {err.getvalue()}")
        print(out.getvalue(), end="")


get_ipython().register_magic_function(_bash, "cell", "bash")
