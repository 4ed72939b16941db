#!/usr/bin/env bash
# Installs what the tests start: RabbitMQ, Redis, Postfix, Dovecot and others from Debian, aiosmtpd into a Python environment
# under target/. Starts no service. Does nothing, quickly, when all is there. Machines that are not Debian: see the README.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
venv=${POSTRIDER_TEST_VENV:-$root/target/test-venv}
aiosmtpd=1.4.6

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

if [ ! -e "$venv/aiosmtpd-$aiosmtpd" ]; then
  rm -rf "$venv"
  python3 -m venv "$venv"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "aiosmtpd==$aiosmtpd"
  touch "$venv/aiosmtpd-$aiosmtpd"
fi
