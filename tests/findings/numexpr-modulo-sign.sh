#!/bin/bash
# Software: numexpr 2.10.2 with numpy 2.2.6 (PyPI).
# Behaviour: the % operator takes the sign of the divisor, for integers and for floats, as Python
#   and NumPy do: -7 % 3 is 2.
# Expected from memory: numexpr runs C code, so % gives C's remainder with the sign of the
#   dividend, -1 for both types.
# Output seen: for int32, int64, float32 and float64 alike "-7%3=2 7%-3=-2 -7%-3=-1", equal to NumPy.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check numexpr==2.10.2 numpy==2.2.6 2>pip.log \
  || { cat pip.log; echo "changed: numexpr 2.10.2 with numpy 2.2.6 cannot be installed"; exit 1; }
cat > try.py <<'PY'
import numexpr, numpy
for kind in ("int32", "int64", "float32", "float64"):
    a = numpy.array([-7, 7, -7], kind)
    b = numpy.array([3, -3, -3], kind)
    got = numexpr.evaluate("a % b")
    print(kind, "-7%%3=%g 7%%-3=%g -7%%-3=%g" % tuple(got),
          "as numpy" if (got == a % b).all() else "unlike numpy")
PY
got=$(venv/bin/python try.py)
want="int32 -7%3=2 7%-3=-2 -7%-3=-1 as numpy
int64 -7%3=2 7%-3=-2 -7%-3=-1 as numpy
float32 -7%3=2 7%-3=-2 -7%-3=-1 as numpy
float64 -7%3=2 7%-3=-2 -7%-3=-1 as numpy"
echo "$got"
[ "$got" = "$want" ] || { echo "changed: expected:"; echo "$want"; exit 1; }
