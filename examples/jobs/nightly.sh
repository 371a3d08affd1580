#!/usr/bin/env bash
# Train on the cluster if it is sound; exit code 1 when it is not or the run failed, 2 on a mistake
# in the settings.
set -euo pipefail
config=examples/jobs/train.yaml
name=nightly-$(date +%Y%m%d)
btray submit doctor --config "$config"
btray submit train --config "$config" --name "$name"
