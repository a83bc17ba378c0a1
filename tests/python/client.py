"""An independent gRPC client: knows nothing but what health and reflection tell it.

Usage: client.py HOST:PORT. Trusts the certificate the server shows (the product pins its fingerprint instead).
Ends with "ok" if every check held.
"""

import os
import ssl
import sys

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase


def connect(address):
    host, port = address.rsplit(":", 1)
    pem = ssl.get_server_certificate((host, int(port)))
    credentials = grpc.ssl_channel_credentials(root_certificates=pem.encode())
    return grpc.secure_channel(address, credentials, options=[("grpc.ssl_target_name_override", sys.argv[2])])


def method(channel, pool, service, name):
    """A callable for one unary method, its messages made from reflection alone."""
    described = pool.FindServiceByName(service).FindMethodByName(name)
    request, response = GetMessageClass(described.input_type), GetMessageClass(described.output_type)
    call = channel.unary_unary(
        f"/{service}/{name}", request_serializer=request.SerializeToString, response_deserializer=response.FromString
    )
    return request, call


def refused(call, request, *codes):
    try:
        call(request, timeout=10)
    except grpc.RpcError as error:
        assert error.code() in codes, f"{error.code()}: {error.details()}"
        return
    raise AssertionError("the call was answered")


def main():
    channel = connect(sys.argv[1])
    health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
    assert health.status == health_pb2.HealthCheckResponse.SERVING, health

    database = ProtoReflectionDescriptorDatabase(channel)
    services = set(database.get_services())
    for wanted in ("AccountService", "DriveService", "ObjectService"):
        assert f"sealdrive.v1.{wanted}" in services, services
    pool = DescriptorPool(database)

    # Login begins for an account that does not exist as for one that does.
    Hello, hello = method(channel, pool, "sealdrive.v1.AccountService", "Hello")
    answer = hello(
        Hello(account=os.urandom(32), role=1, device=os.urandom(16), client_nonce=os.urandom(32)), timeout=10
    )
    assert len(answer.server_nonce) == 32 and len(answer.signature) == 64, answer
    # A malformed request is refused as such.
    refused(hello, Hello(account=b"short"), grpc.StatusCode.INVALID_ARGUMENT)
    # And nothing is open without a token.
    Find, find = method(channel, pool, "sealdrive.v1.ObjectService", "FindMissing")
    refused(find, Find(domain=os.urandom(32), sids=[os.urandom(32)]), grpc.StatusCode.UNAUTHENTICATED)
    Head, head = method(channel, pool, "sealdrive.v1.DriveService", "GetHead")
    refused(head, Head(drive=os.urandom(32)), grpc.StatusCode.UNAUTHENTICATED)
    # A forged login is refused.
    Login, login = method(channel, pool, "sealdrive.v1.AccountService", "Login")
    refused(
        login,
        Login(server_nonce=answer.server_nonce, signature=os.urandom(64)),
        grpc.StatusCode.UNAUTHENTICATED,
    )
    print("ok")


if __name__ == "__main__":
    main()
