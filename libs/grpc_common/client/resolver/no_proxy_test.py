import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpc_common.client.resolver.no_proxy import bypasses_proxy

V4, V6, NAME = "https://10.96.0.1:443", "https://[fd00::1]:6443", "https://kubernetes.default.svc:6443"


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    """The variables of the machine don't count."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("value", "url", "expected"),
    [
        ("10.0.0.0/8", V4, True),
        ("localhost, 10.0.0.0/8", V4, True),
        ("10.96.0.1/8", V4, True),
        ("11.0.0.0/8", V4, False),
        ("10.96.0.1", V4, True),
        ("10.96.0.1:443", V4, True),
        ("10.96.0.1:6443", V4, False),
        ("0.0.0.0/0", V4, True),
        ("0.0.0.0/0", V6, False),
        ("fd00::/8", V6, True),
        ("::1/128", V6, False),
        ("::1/128", "https://[::1]", True),
        ("FD00:0:0::1", V6, True),
        ("[fd00::1]", V6, True),
        ("[fd00::1]:6443", V6, True),
        ("[fd00::1]:443", V6, False),
        ("*", V4, True),
        ("*", NAME, True),
        ("a,*", V6, True),
        (".svc", NAME, True),
        ("svc", NAME, True),
        ("default.svc:6443", NAME, True),
        ("default.svc:443", NAME, False),
        ("vc", NAME, False),
        ("KUBERNETES.default.svc", NAME, True),
        ("10.0.0.0/8", NAME, False),
        ("10.0.0.0/99,x/y,/,::/", V4, False),
        ("", V4, False),
        (",", V4, False),
        (" , ", NAME, False),
        ("10.0.0.0/8", "https://user:secret@10.96.0.1:443", True),
        ("10.96.0.1", "https://user:secret@10.96.0.1:443", True),
        ("10.96.0.1", "https://[fd07:443", False),
    ],
)
@pytest.mark.parametrize("variable", ["NO_PROXY", "no_proxy"])
def test_entries(monkeypatch, variable, value, url, expected):
    """Addresses, CIDRs, names, suffixes and ports count, and `*` for all."""
    monkeypatch.setenv(variable, value)
    assert bypasses_proxy(url) == expected


def test_without_the_variable():
    """Nothing is excepted."""
    assert not bypasses_proxy(V4)


@given(value=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_no_value_is_an_error(value):
    """Whatever stands there, a program starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", value)
        bypasses_proxy(V4)
