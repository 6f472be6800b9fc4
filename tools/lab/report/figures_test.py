from tools.lab.report.figures import causes
from tools.lab.report.model import parsed
from tools.lab.report.testing_report import bad_day, lab


def with_phases(report, *phases):
    """Return the report; in its phases, (event, why), calls failed: one in the first, two in the next, ..."""
    run = report["runs"][0]
    run["phases"] = [
        run["phases"][0] | {"event": event, "failed": {why: count}}
        for count, (event, why) in enumerate(phases, 1)
    ]
    return parsed(report)


def test_what_fails_after_an_event_is_due_to_it():
    """A steady phase belongs to the event before it, and to the plan if there is none."""
    steady = None
    known = with_phases(
        lab(),
        (steady, "at first"),
        ("scale-up", "connection age"),
        ("kill", "reset"),
        (steady, "reset"),
        ("roll", "drain"),
        (steady, "connection age"),
    )
    planned, otherwise = (causes(known, known.runs[0], planned=planned) for planned in (True, False))
    assert planned == {"connection age": 8, "drain": 5, "at first": 1}
    assert list(planned) == ["connection age", "drain", "at first"]  # the most frequent first
    assert otherwise == {"reset": 7}


def test_on_a_bad_day_what_is_no_planned_event_is_full_of_faults():
    """Nobody plans a storm; before the first one nothing has failed yet that could be to blame."""
    report = bad_day()
    known = with_phases(report, (None, "first"), (None, "storm"), ("roll", "drain"), (None, "storm"))
    assert causes(known, known.runs[0], planned=True) == {"drain": 3, "first": 1}
    assert causes(known, known.runs[0], planned=False) == {"storm": 6}
    report["runs"][0]["phases"][2] |= {"event": None, "title": "roll"}
    named = parsed(report)
    assert causes(named, named.runs[0], planned=True) == {"drain": 3, "first": 1}
