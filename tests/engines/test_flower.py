"""Which of Flower's private or unstable names fedleak leans on, in few rooms: an upgrade that moves one fails here, by name."""

import ast
import importlib
import inspect
import re
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from flwr.app import Context, Message, Metadata, RecordDict
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto import control_pb2
from flwr.proto.node_pb2 import NodeInfo
from flwr.server.superlink.linkstate import InMemoryLinkState, LinkStateFactory
from flwr.simulation.run_simulation import _run_simulation
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.federation import NoOpFederationManager

import fedleak
from fedleak.engines.inprocess import _CLIENT_RAISED
from fedleak.wire.grid import is_simulated
from fedleak.wire.replies import _UNREACHABLE

PACKAGE = Path(fedleak.__file__).parent
ROOMS = ("deploy", "engines", "secagg", "wire")
PUBLIC = {"flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.serverapp.strategy", "flwr.app.exception"}
PRIVATE = {
    "flwr.cli.build": {"build_fab_from_files"},
    "flwr.client.mod": {"secaggplus_mod"},
    "flwr.common": {"Code", "FitRes", "Status", "bytes_to_ndarray", "ndarrays_to_parameters"},
    "flwr.common.constant": {"Status"},
    "flwr.common.secure_aggregation.crypto.shamir": {"combine_shares"},
    "flwr.common.secure_aggregation.crypto.symmetric_encryption": {"generate_shared_key"},
    "flwr.common.secure_aggregation.ndarrays_arithmetic": {
        "factor_extract",
        "get_parameters_shape",
        "parameters_addition",
        "parameters_mod",
        "parameters_subtraction",
    },
    "flwr.common.secure_aggregation.quantization": {"dequantize"},
    "flwr.common.secure_aggregation.secaggplus_constants": {"Key", "RECORD_KEY_CONFIGS", "RECORD_KEY_STATE", "Stage"},
    "flwr.common.secure_aggregation.secaggplus_utils": {"pseudo_rand_gen"},
    "flwr.common.serde": {"fab_to_proto", "message_from_proto", "message_to_proto", "user_config_to_proto"},
    "flwr.compat.common.recorddict_compat": {"fitres_to_recorddict"},
    "flwr.proto.control_pb2": {
        "ListNodesRequest",
        "ListRunsRequest",
        "RegisterNodeRequest",
        "StartRunRequest",
        "StopRunRequest",
        "StreamLogsRequest",
    },
    "flwr.server.superlink.linkstate.in_memory_linkstate": {"InMemoryLinkState"},
    "flwr.simulation.run_simulation": {"_run_simulation"},
    "flwr.supercore.constant": {"NOOP_FEDERATION_ID"},
    "flwr.supercore.control": {"ControlHttpClient"},
    "flwr.supercore.error": {"FlowerError"},
    "flwr.supercore.fab": {"Fab"},
    "flwr.supercore.interceptors": {"RuntimeVersionHttpInterceptor"},
    "flwr.supercore.primitives.asymmetric": {"bytes_to_private_key", "bytes_to_public_key", "public_key_to_bytes"},
    "flwr.supercore.run": {"Run"},
    "flwr.supercore.task_identity": {"TaskIdentity"},
    "flwr.supercore.telemetry": {"EventType"},
}


def imports(folder: Path) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "flwr":
                found.setdefault(str(node.module), set()).update(alias.name for alias in node.names)
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.split(".")[0] == "flwr":
                        found.setdefault(alias.name, set())
    return found


def test_private_names_are_listed_here_and_exist() -> None:
    private: dict[str, set[str]] = {}
    for room in ROOMS:
        for module, names in imports(PACKAGE / room).items():
            if module not in PUBLIC:
                private.setdefault(module, set()).update(names)
    assert private == PRIVATE
    for module, names in PRIVATE.items():
        for name in names:
            assert hasattr(importlib.import_module(module), name), f"{module}.{name}"


def test_private_names_live_in_few_rooms_only() -> None:
    for folder in PACKAGE.iterdir():
        if folder.is_dir() and folder.name not in ROOMS:
            assert set(imports(folder)) <= PUBLIC, folder.name
    for module, names in imports(PACKAGE).items():
        if module in PUBLIC:
            assert not [name for name in names if name.startswith("_")]


def test_the_grid_of_the_simulation_is_where_it_is_looked_for_without_importing_it() -> None:
    assert "flwr.superlink.grid.inmemory_grid" in (PACKAGE / "wire" / "grid.py").read_text()
    grid = importlib.import_module("flwr.superlink.grid.inmemory_grid").InMemoryGrid
    assert is_simulated(grid.__new__(grid))
    assert not is_simulated(object())  # type: ignore[arg-type]


def test_what_the_engines_call_takes_what_they_pass() -> None:
    tree = ast.parse((PACKAGE / "engines" / "ray.py").read_text())
    [call] = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "_run_simulation"]
    assert {keyword.arg for keyword in call.keywords} <= set(inspect.signature(_run_simulation).parameters)
    run = Run.create_empty(run_id=1)
    for name in ("primary_task_id", "federation_id", "override_config"):
        assert hasattr(run, name), name
    assert {"run_id", "node_id", "node_config", "state", "run_config"} <= set(inspect.signature(Context).parameters)


def test_a_message_has_an_id_to_set_and_survives_the_wire(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("run_id", "node_id", "task_id"):
        assert name in vars(type(TaskIdentity))
        monkeypatch.setattr(TaskIdentity, f"_{name}", 1)
    message = Message(RecordDict(), dst_node_id=7, message_type="train")
    assert isinstance(message.metadata, Metadata)
    assert {"_message_id", "_src_node_id"} <= set(message.metadata.__dict__)
    message.metadata.__dict__["_message_id"] = "5"
    received = message_from_proto(message_to_proto(message))
    assert (received.metadata.message_id, received.metadata.dst_node_id) == ("5", 7)
    assert Message(RecordDict(), reply_to=received).metadata.reply_to_message_id == "5"


def test_the_control_api_has_the_calls_and_fields_that_are_used() -> None:
    for call in ("StartRun", "StopRun", "StreamLogs", "ListRuns", "ListNodes", "RegisterNode", "from_server_address", "close"):
        assert callable(getattr(ControlHttpClient, call)), call
    fields = {
        control_pb2.StartRunRequest: {"fab", "override_config"},
        control_pb2.StartRunResponse: {"run_id"},
        control_pb2.StreamLogsRequest: {"run_id", "after_timestamp"},
        control_pb2.StreamLogsResponse: {"log_output"},
        control_pb2.ListRunsResponse: {"run_dict"},
        control_pb2.ListNodesResponse: {"nodes_info"},
        control_pb2.RegisterNodeRequest: {"public_key"},
    }
    for message, names in fields.items():
        assert names <= {field.name for field in message.DESCRIPTOR.fields}, message.DESCRIPTOR.name
    assert {"node_id", "status", "public_key"} <= {field.name for field in NodeInfo.DESCRIPTOR.fields}


@pytest.mark.parametrize("program", ["flower-superlink", "flower-supernode", "flower-superexec"])
def test_the_services_take_the_options_that_they_are_started_with(program: str) -> None:
    name = {"flower-superlink": "superlink", "flower-supernode": "client", "flower-superexec": "server"}[program] + "_command"
    tree = ast.parse((PACKAGE / "deploy" / "commands.py").read_text())
    [function] = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == name]
    strings = [n.value for n in ast.walk(function) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    options = [text for text in strings if text.startswith("--")]
    modules = {
        "flower-superlink": "flwr.superlink.cli.flower_superlink",
        "flower-supernode": "flwr.supernode.cli.flower_supernode",
        "flower-superexec": "flwr.supercore.cli.flower_superexec",
    }
    source = inspect.getsource(importlib.import_module(modules[program]))
    source += inspect.getsource(importlib.import_module("flwr.supercore.auth.superexec_secret"))
    assert options
    assert [option for option in options if f'"{option}"' not in source] == []
    assert program in {script.name for script in entry_points(group="console_scripts")}


def test_the_codes_of_errors_that_no_client_raised() -> None:
    codes = ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE, ErrorCode.NODE_UNAVAILABLE
    assert codes == _UNREACHABLE
    assert _CLIENT_RAISED == ErrorCode.CLIENT_APP_RAISED_EXCEPTION


def test_the_simulated_nodes_are_numbered_in_the_order_in_which_they_are_made() -> None:
    source = inspect.getsource(importlib.import_module("flwr.server.superlink.fleet.vce.vce_api")._register_nodes)
    assert re.search(r"for i in range\(num_nodes\):\s+node_id = state.create_node\(", source)
    assert "nodes_mapping[node_id] = i" in source
    state = LinkStateFactory(FLWR_IN_MEMORY_DB_NAME, NoOpFederationManager(), ObjectStoreFactory()).state()
    made = [state.create_node("owner", "name", bytes([number]) * 32, heartbeat_interval=60) for number in range(20)]
    assert isinstance(state, InMemoryLinkState)
    assert list(state.nodes) == made
