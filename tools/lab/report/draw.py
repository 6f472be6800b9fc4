"""Draw a report that the lab or a bad day has written as JSON."""

from pathlib import Path

import click

from grpc_common.config.path_argument import PathArgument
from tools.lab.report.model import read
from tools.lab.report.page import page
from tools.lab.report.picture import picture
from tools.pages.output_file import OutputFile, write


@click.command(help=__doc__)
@click.argument("report", metavar="REPORT.json", type=PathArgument(exists=True, dir_okay=False))
@click.option("--html", type=OutputFile(), metavar="FILE", help="A file for the page.")
@click.option("--picture", "svg", type=OutputFile(), metavar="FILE", help="A file for the picture, as SVG.")
def main(report: Path, html: Path | None, svg: Path | None) -> None:
    """Draw what was asked for."""
    if not (html or svg):
        raise click.UsageError("nothing to draw: say --html FILE, --picture FILE, or both")
    try:
        data = read(report)
    except (ValueError, OSError) as error:
        raise click.BadParameter(f"{report}: {error}", param_hint="REPORT.json") from error
    for file, draw in ((html, page), (svg, picture)):
        if file:
            write(file, draw(data))


if __name__ == "__main__":
    main(prog_name="draw")
