from user import user_service_pb2


def test_go_package():
    """Go's compiler is told where the contract's package is; without that it refuses the file."""
    assert user_service_pb2.DESCRIPTOR.GetOptions().go_package == "github.com/example/user"
