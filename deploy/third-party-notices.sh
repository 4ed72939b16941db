#!/usr/bin/env bash
# Prints the licences of every crate that goes into the binary, texts included: for the image, and for whoever passes the binary on.
#
#   deploy/third-party-notices.sh > THIRD-PARTY-NOTICES.txt
#   deploy/third-party-notices.sh --list      # only name and version of each crate
#
# Needs cargo and the sources of the crates, which a build has fetched. Fails where a crate has neither a licence file nor a licence whose
# text stands at the end (MIT, Apache-2.0).
set -euo pipefail
cd "$(dirname "$0")/.."

# name, version, licence, repository of each crate that is not ours: what the binary is compiled from, macros included.
crates() {
  cargo tree --locked --package postrider-workers --edges normal --prefix none --no-dedupe --format '{p}|{l}|{r}' |
    grep --invert-match ' (/' | sed --regexp-extended 's/^([^ ]+) v([^ |]+)[^|]*/\1|\2/' | sort --unique
}

if [ "${1:-}" = "--list" ]; then
  crates | cut --delimiter='|' --fields=1,2 | tr '|' ' '
  exit
fi

# The unpacked sources: of crates.io, or of a mirror or a vendored folder that stands for it.
shopt -s nullglob
sources=("${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/ vendor/)
folder_of() {
  local source
  for source in "${sources[@]}"; do
    for folder in "$source$1-$2" "$source$1"; do
      if [ -d "$folder" ]; then echo "$folder" && return; fi
    done
  done
  echo "no source of $1 $2 in ${sources[*]}: build first, or cargo fetch" >&2
  return 1
}

line='================================================================================'
echo "Postrider is made from the crates below. Each has the licence that is named with it."
while IFS='|' read -r name version licence repository; do
  printf '\n%s\n%s %s\n%s\n%s\n' "$line" "$name" "$version" "$licence" "$repository"
  folder=$(folder_of "$name" "$version")
  files=$(find "$folder" -maxdepth 2 -type f \( -iname 'licen[sc]e*' -o -iname 'copying*' -o -iname 'notice*' -o -iname 'unlicense*' \
    -o -iname 'copyright*' \) ! -name '*.rs' | sort)
  if [ -n "$files" ]; then
    while read -r file; do
      printf '\n--- %s\n\n' "${file#"$folder"/}"
      cat "$file"
    done <<< "$files"
  else
    case $licence in
      *Apache-2.0* | *MIT*) printf '\nThe package holds no licence file: the text of the licence stands at the end.\n' ;;
      *)
        echo "$name $version has the licence '$licence' and no text of it: add it here" >&2
        exit 1
        ;;
    esac
  fi
done < <(crates)
printf '\n%s\nApache License, Version 2.0\n\n' "$line"
cat LICENSE-APACHE
printf '\n%s\nMIT License\n\n' "$line"
sed --quiet '/^Permission is hereby/,$p' LICENSE-MIT
