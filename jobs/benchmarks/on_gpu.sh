#!/usr/bin/env bash
# Everything about a GPU in one command, within 9 minutes: bash jobs/benchmarks/on_gpu.sh OUT [GOLDEN]
#
# Each part writes its log, and its JSON where it has one, to OUT as soon as it is done; a part that fails or takes too
# long does not stop the others. Needs torch 2.11 or newer, transformers 5, safetensors, numpy and pytest, no network.
# PARTS names the parts to run, in order; SMALL=1 takes tiny sizes on a CPU, for rehearsal.
set -uo pipefail
cd "$(dirname "$0")/../.."
out=${1:?bash jobs/benchmarks/on_gpu.sh OUT [GOLDEN]}
golden=${2:-}
python=${PYTHON:-python3}
export PYTHONUNBUFFERED=1
mkdir -p "$out"
failed=0

large=openai/clip-vit-large-patch14
base=openai/clip-vit-base-patch16
streams="1 4 16 64" rates="0 0.5 0.85 0.9 0.95" rounds="--rounds 10" device="" step="--windows 16"
if [ -n "${SMALL:-}" ]; then
	large=facebook/dinov2-small base=facebook/dinov2-small
	streams=1 rates=0.85 rounds="--rounds 1 --threads 2 --dense-batches 2 --compile-mode no" device="--device cpu" step="--windows 1 --steps 1 --precisions float32 --compiled no"
fi

# part NAME SECONDS COMMAND...
part() {
	local name=$1 limit=$2
	shift 2
	local began=$SECONDS
	timeout "$limit" "$@" >"$out/$name.log" 2>&1
	local status=$?
	[ $status = 0 ] || failed=1
	echo "== $name: exit $status after $((SECONDS - began)) s"
	tail -n "${LINES_SHOWN:-12}" "$out/$name.log"
}

# speed NAME SECONDS BACKBONE [MORE...]
speed() {
	local name=$1 limit=$2 backbone=$3
	shift 3
	# shellcheck disable=SC2086
	part "$name" "$limit" "$python" jobs/benchmarks/speed.py --backbone "$backbone" --random-weights $rounds $device \
		--streams $streams --reuse-rates $rates --json "$out/$name.json" "$@"
}

for name in ${PARTS:-tests verify large profile parts step base siglip dino}; do
	case $name in
	tests)
		part tests 100 "$python" -m pytest -q -p no:cacheprovider -W default tests/reuse_models/reusevit/engines/test_fused_capacity.py \
			tests/reuse_models/reusevit/engines/test_fixed_capacity.py tests/reuse_models/reusevit/engines/test_cuda_graphs.py
		;;
	verify)
		if [ -n "$golden" ]; then
			part verify 60 "$python" jobs/verify.py --golden "$golden" --json "$out/verify.json"
		else
			part verify 60 "$python" jobs/verify.py --fast-paths --json "$out/verify.json"
		fi
		;;
	large) speed large 180 $large ;;
	base) speed base 60 $base --dense-batches 256 ;;
	siglip) [ -n "${SMALL:-}" ] || speed siglip 60 google/siglip2-base-patch16-224 --dense-batches 256 ;;
	dino) [ -n "${SMALL:-}" ] || speed dino 60 facebook/dinov2-small --dense-batches 256 ;;
	# shellcheck disable=SC2086
	step) part step 100 "$python" jobs/benchmarks/step_on_gpu.py --backbone $base $device $step --json "$out/step.json" ;;
	profile)
		[ -n "${SMALL:-}" ] || part profile 60 "$python" jobs/benchmarks/profile_gpu.py --json "$out/profile.json"
		;;
	parts)
		[ -n "${SMALL:-}" ] || part parts 60 "$python" jobs/benchmarks/parts_on_gpu.py --json "$out/parts.json"
		;;
	*)
		echo "part: got $name, expected tests, verify, large, profile, parts, step, base, siglip or dino; fix PARTS"
		failed=1
		;;
	esac
done
exit $failed
