"""deploy.yaml of an overlay, which says where it may be deployed."""

from tools.fuzz.input_file import input_file
from tools.fuzz.properties import check_shown
from tools.kubernetes.deploy.guards import RefusedError, Settings, check_context


def fuzz(data: bytes) -> None:
    """A file is taken or refused; what is taken lets no other context in than it names."""
    try:
        settings = Settings.read(input_file(data))
    except RefusedError as error:
        check_shown(str(error).replace("\t", " "))
        return
    for context in (*settings.contexts, "another", None):
        try:
            check_context(settings, "prod", context)
        except RefusedError as error:
            assert settings.contexts or settings.release
            assert context not in settings.contexts or not context
            check_shown(str(error), 10 * len(data) + 1000)
