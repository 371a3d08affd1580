import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto

from btray.serve.proto import (
    classifier_pb2,
    classifier_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
)

ROOT = Path(__file__).parents[2]
PROTO = Path("btray/serve/proto")
MODULES = (classifier_pb2, inference_pb2)

# The fields of tritonclient 2.73.0, printed by `fields` below from its own descriptor
# (tritonclient.grpc.service_pb2.DESCRIPTOR) in a virtual environment of its own, for it does
# not go together with our protobuf.
TRITON_FIELDS = """\
ServerLiveResponse.live 1 bool
ServerReadyResponse.ready 1 bool
ModelReadyRequest.name 1 string
ModelReadyRequest.version 2 string
ModelReadyResponse.ready 1 bool
ServerMetadataResponse.name 1 string
ServerMetadataResponse.version 2 string
ServerMetadataResponse.extensions 3 string repeated
ModelMetadataRequest.name 1 string
ModelMetadataRequest.version 2 string
ModelMetadataResponse.name 1 string
ModelMetadataResponse.versions 2 string repeated
ModelMetadataResponse.platform 3 string
ModelMetadataResponse.inputs 4 TensorMetadata repeated
ModelMetadataResponse.outputs 5 TensorMetadata repeated
ModelMetadataResponse.TensorMetadata.name 1 string
ModelMetadataResponse.TensorMetadata.datatype 2 string
ModelMetadataResponse.TensorMetadata.shape 3 int64 repeated
InferParameter.bool_param 1 bool parameter_choice
InferParameter.int64_param 2 int64 parameter_choice
InferParameter.string_param 3 string parameter_choice
InferParameter.double_param 4 double parameter_choice
InferParameter.uint64_param 5 uint64 parameter_choice
InferTensorContents.bool_contents 1 bool repeated
InferTensorContents.int_contents 2 int32 repeated
InferTensorContents.int64_contents 3 int64 repeated
InferTensorContents.uint_contents 4 uint32 repeated
InferTensorContents.uint64_contents 5 uint64 repeated
InferTensorContents.fp32_contents 6 float repeated
InferTensorContents.fp64_contents 7 double repeated
InferTensorContents.bytes_contents 8 bytes repeated
ModelInferRequest.model_name 1 string
ModelInferRequest.model_version 2 string
ModelInferRequest.id 3 string
ModelInferRequest.parameters 4 ParametersEntry repeated
ModelInferRequest.inputs 5 InferInputTensor repeated
ModelInferRequest.outputs 6 InferRequestedOutputTensor repeated
ModelInferRequest.raw_input_contents 7 bytes repeated
ModelInferRequest.InferInputTensor.name 1 string
ModelInferRequest.InferInputTensor.datatype 2 string
ModelInferRequest.InferInputTensor.shape 3 int64 repeated
ModelInferRequest.InferInputTensor.parameters 4 ParametersEntry repeated
ModelInferRequest.InferInputTensor.contents 5 InferTensorContents
ModelInferRequest.InferInputTensor.ParametersEntry.key 1 string
ModelInferRequest.InferInputTensor.ParametersEntry.value 2 InferParameter
ModelInferRequest.InferRequestedOutputTensor.name 1 string
ModelInferRequest.InferRequestedOutputTensor.parameters 2 ParametersEntry repeated
ModelInferRequest.InferRequestedOutputTensor.ParametersEntry.key 1 string
ModelInferRequest.InferRequestedOutputTensor.ParametersEntry.value 2 InferParameter
ModelInferRequest.ParametersEntry.key 1 string
ModelInferRequest.ParametersEntry.value 2 InferParameter
ModelInferResponse.model_name 1 string
ModelInferResponse.model_version 2 string
ModelInferResponse.id 3 string
ModelInferResponse.parameters 4 ParametersEntry repeated
ModelInferResponse.outputs 5 InferOutputTensor repeated
ModelInferResponse.raw_output_contents 6 bytes repeated
ModelInferResponse.InferOutputTensor.name 1 string
ModelInferResponse.InferOutputTensor.datatype 2 string
ModelInferResponse.InferOutputTensor.shape 3 int64 repeated
ModelInferResponse.InferOutputTensor.parameters 4 ParametersEntry repeated
ModelInferResponse.InferOutputTensor.contents 5 InferTensorContents
ModelInferResponse.InferOutputTensor.ParametersEntry.key 1 string
ModelInferResponse.InferOutputTensor.ParametersEntry.value 2 InferParameter
ModelInferResponse.ParametersEntry.key 1 string
ModelInferResponse.ParametersEntry.value 2 InferParameter
"""


def messages(module):
    found = list(module.DESCRIPTOR.message_types_by_name)
    return [getattr(module, name) for name in found]


def nested(message):
    return [getattr(message, kind.name) for kind in message.DESCRIPTOR.nested_types]


def fields(message, prefix):
    for field in message.field:
        kind = field.type_name.rsplit(".", 1)[-1]
        kind = kind or FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
        many = " repeated" if field.label == FieldDescriptorProto.LABEL_REPEATED else ""
        one = (
            f" {message.oneof_decl[field.oneof_index].name}"
            if field.HasField("oneof_index")
            else ""
        )
        yield f"{prefix}.{field.name} {field.number} {kind}{many}{one}"
    for inner in message.nested_type:
        yield from fields(inner, f"{prefix}.{inner.name}")


def test_fields_are_those_of_triton():
    file = FileDescriptorProto()
    inference_pb2.DESCRIPTOR.CopyToProto(file)

    found = [line for message in file.message_type for line in fields(message, message.name)]

    assert sorted(found) == sorted(TRITON_FIELDS.splitlines())
    assert file.package == "inference"


def test_service_has_the_methods_of_the_protocol():
    service = inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]

    assert [
        (method.name, method.input_type.name, method.output_type.name) for method in service.methods
    ] == [
        (name, f"{name}Request", f"{name}Response")
        for name in (
            "ServerLive",
            "ServerReady",
            "ModelReady",
            "ServerMetadata",
            "ModelMetadata",
            "ModelInfer",
        )
    ]
    assert not any(method.client_streaming or method.server_streaming for method in service.methods)


def test_classifier_streams_where_it_says_so():
    service = classifier_pb2.DESCRIPTOR.services_by_name["Classifier"]

    assert service.full_name == "btray.v1.Classifier"
    assert {
        method.name: (method.client_streaming, method.server_streaming)
        for method in service.methods
    } == {
        "Classify": (False, False),
        "ClassifySeries": (False, True),
        "ClassifyStream": (True, True),
    }


@pytest.mark.parametrize(
    "message", [kind for module in MODULES for kind in messages(module)], ids=lambda k: k.__name__
)
def test_messages_are_importable_where_they_say(message):
    for kind in (message, *nested(message)):
        if kind.DESCRIPTOR.GetOptions().map_entry:
            continue
        assert kind.__module__.startswith("btray.serve.proto.")
        assert pickle.loads(pickle.dumps(kind())) == kind()


def test_messages_go_to_another_process_and_back():
    """Ray Serve's proxy pickles them on their way to a replica."""
    response = classifier_pb2.ClassifyResponse(
        class_name="glioma",
        probabilities={"glioma": 0.75, "notumor": 0.25},
        prediction_set=["glioma"],
        model=classifier_pb2.Model(name="brain", version="1"),
        explanation_png=b"\x89PNG",
        error=classifier_pb2.Error(code="empty", message="the file is empty"),
    )
    request = inference_pb2.ModelInferRequest(model_name="brain", raw_input_contents=[b"\0\xff"])
    request.parameters["binary_data_output"].bool_param = True
    program = (
        "import pickle, sys; sent = pickle.load(sys.stdin.buffer); "
        "sys.stdout.buffer.write(pickle.dumps(sent))"
    )

    there = subprocess.run(
        [sys.executable, "-c", program],
        input=pickle.dumps([response, request]),
        stdout=subprocess.PIPE,
        check=True,
    )

    assert pickle.loads(there.stdout) == [response, request]


def test_stubs_can_be_registered():
    assert callable(inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server)
    assert callable(classifier_pb2_grpc.add_ClassifierServicer_to_server)


def test_generating_anew_gives_what_is_committed(tmp_path):
    """Run `make proto` when this fails."""
    sources = sorted(str(path.relative_to(ROOT)) for path in (ROOT / PROTO).glob("*.proto"))
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", "."]
    command += [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]

    subprocess.run([*command, *sources], cwd=ROOT, check=True)

    made = {path.name: path.read_text() for path in (tmp_path / PROTO).iterdir()}
    kept = {path.name: path.read_text() for path in (ROOT / PROTO).glob("*_pb2*.py*")}
    assert sorted(made) == [
        f"{name}_{suffix}"
        for name in ("classifier", "inference")
        for suffix in ("pb2.py", "pb2.pyi", "pb2_grpc.py")
    ]
    assert made == kept
