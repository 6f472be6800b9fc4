from tools.lab.report.figures import causes
from tools.lab.report.model import parsed
from tools.lab.report.testing_report import lab


def test_what_fails_after_an_event_is_due_to_it():
    """A steady phase belongs to the event before it, and to the plan if there is none."""
    report = lab()
    phase = report["runs"][0]["phases"][0]
    report["runs"][0]["phases"] = [
        phase | {"event": event, "failed": {why: count}}
        for event, why, count in (
            (None, "at first", 1),
            ("scale-up", "connection age", 2),
            ("kill", "reset", 3),
            (None, "reset", 4),
            ("roll", "drain", 5),
            (None, "connection age", 6),
        )
    ]
    known = parsed(report)
    planned, otherwise = (causes(known, known.runs[0], planned=planned) for planned in (True, False))
    assert planned == {"connection age": 8, "drain": 5, "at first": 1}
    assert list(planned) == ["connection age", "drain", "at first"]  # the most frequent first
    assert otherwise == {"reset": 7}
