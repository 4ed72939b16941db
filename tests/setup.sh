#!/usr/bin/env bash
# Installs what the tests start: RabbitMQ, Redis, Postfix, Dovecot and others from Debian, aiosmtpd and moto into a Python environment
# under target/. Starts no service. Does nothing, quickly, when all is there. Machines that are not Debian: see the README.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
venv=${POSTRIDER_TEST_VENV:-$root/target/test-venv}
aiosmtpd=1.4.6
moto=5.2.5

declare -A package=(
  [/usr/lib/rabbitmq/bin/rabbitmq-server]=rabbitmq-server
  [/usr/bin/epmd]=erlang-base
  [/usr/bin/redis-server]=redis-server
  [/usr/bin/redis-cli]=redis-tools
  [/usr/sbin/smtp-sink]=postfix
  [/usr/sbin/dovecot]=dovecot-core
  [/usr/sbin/postgrey]=postgrey
  [/usr/bin/swaks]=swaks
  [/usr/bin/cc]=build-essential
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
marker=$venv/aiosmtpd-$aiosmtpd-moto-$moto
if [ ! -e "$marker" ]; then
  rm -rf "$venv"
  python3 -m venv "$venv"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "aiosmtpd==$aiosmtpd" "moto[server]==$moto"
  touch "$marker"
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
