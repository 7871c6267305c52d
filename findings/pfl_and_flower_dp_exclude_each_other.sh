#!/usr/bin/env bash
# Flower with its differential-privacy extra and Apple's pfl cannot be installed into one environment.
#
# Versions: flwr 1.41.0 (extra "dp"), pfl 0.6.0.
# Expected: two federated-learning frameworks, both with a privacy accountant from dp-accounting, side by side in one
# environment, so that one run can be checked against the other.
# What happens: the extra wants dp-accounting from 0.6 on, pfl wants one below 0.6; no release is in both ranges and pip gives up.
#   seen: flwr[dp] 1.41.0 depends on dp-accounting<0.7.0 and >=0.6.0; extra == "dp"
#         pfl 0.6.0 depends on dp-accounting<0.6 and >=0.4
# Why it matters: a comparison of the two needs two environments and an exchange by files, and the budgets compared come from two
# versions of the accountant.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv; . venv/bin/activate

# A dry run: pip solves the versions and installs nothing.
if pip install --dry-run 'flwr[dp]==1.41.0' 'pfl==0.6.0' >both.log 2>&1; then
    echo "changed: pip finds one dp-accounting for both"; exit 1
fi
grep 'depends on dp-accounting' both.log || { echo "changed: pip fails for another reason"; tail -5 both.log; exit 1; }
grep -q 'ResolutionImpossible' both.log || { echo "changed: no longer a conflict of versions"; tail -5 both.log; exit 1; }
