"""What `serve deploy serve_config.yaml` is given."""

from pathlib import Path

import yaml

from btray.serve.app import NAME, SERVICERS
from btray.serve.config import ModelServed, ServeConfig

CONFIG = yaml.safe_load((Path(__file__).parents[2] / "serve_config.yaml").read_text())


def test_the_file_names_what_there_is():
    (application,) = CONFIG["applications"]
    assert (application["name"], application["import_path"]) == (NAME, "btray.serve.app:build")
    assert ServeConfig.model_validate(application["args"]).replicas.max == 4
    assert tuple(CONFIG["grpc_options"]["grpc_servicer_functions"]) == SERVICERS
    assert CONFIG["http_options"]["host"] == "127.0.0.1"


def test_models_stand_where_a_change_restarts_no_replica():
    (application,) = CONFIG["applications"]
    assert "models" not in application["args"]
    (deployment,) = application["deployments"]
    assert deployment["name"] == "Classifier"
    (model,) = deployment["user_config"]["models"]
    assert ModelServed.model_validate(model) == ModelServed()
