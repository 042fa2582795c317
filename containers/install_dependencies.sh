#!/bin/sh
# Install what pyproject.toml asks for, at the versions of requirements.lock, with the CPU or the
# CUDA build of PyTorch. Usage: install_dependencies.sh cpu|cuda [INDEX_OF_PYTORCH_WHEELS]
set -eu
torch=$1
index=${2:-}
found=$(ls torch-*.whl 2>/dev/null || true)

set --
case $torch in
  cpu)
    if [ -n "$found" ]; then
      set -- --find-links .
    elif [ -n "$index" ]; then
      set -- --extra-index-url "$index"
    else
      echo "Neither wheels/ nor TORCH_INDEX offers PyTorch's CPU build: taking whatever the" \
        "package index has, which may be the large CUDA build (see containers/README.md)" >&2
    fi
    ;;
  cuda) [ -z "$index" ] || set -- --extra-index-url "$index" ;;
  *)
    echo "TORCH is '$torch'; it must be cpu or cuda" >&2
    exit 64
    ;;
esac

python - > dependencies.txt <<'PYTHON'
import tomllib

with open("pyproject.toml", "rb") as stream:
    print("\n".join(tomllib.load(stream)["project"]["dependencies"]))
PYTHON
python -m pip install --quiet "$@" --constraint requirements.lock --requirement dependencies.txt
python - "$torch" "$found$index" <<'PYTHON'
import sys

import torch

wanted, offered = sys.argv[1:]
print("PyTorch", torch.__version__)
if wanted == "cpu" and offered and torch.version.cuda:
    sys.exit("the CPU build of PyTorch was offered, but its CUDA build was installed")
if wanted == "cuda" and not torch.version.cuda:
    sys.exit("the package index has no CUDA build of PyTorch: name one with TORCH_INDEX")
PYTHON
