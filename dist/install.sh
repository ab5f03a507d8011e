#!/bin/sh
# Installs margay from the folder that this script is in: the plugins, the boot unit, the operator's
# command line, the agent, which nobody starts before an administrator enables it, and last the network configuration, by whose
# appearance a runtime begins to use margay.
#
# Every file comes into its place by one rename. So a runtime that executes the plugin meanwhile gets
# the old one or the new one, and wherever this is interrupted, what was there works. Running it
# again is always right.
set -eu
umask 022

here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=dist/paths.sh
. "$here/paths.sh"

usage() {
    cat <<END
usage: install.sh [OPTION...]
Installs margay, or upgrades it; pods may run meanwhile.

$SHARED_OPTIONS
  --replace-conf   replace configurations that were edited; the edited ones become .old
END
}

main() {
    replace_conf=no
    while [ $# -gt 0 ]; do
        case $1 in
            -h | --help) usage && exit ;;
            --replace-conf) replace_conf=yes && shift ;;
            *) take_option "$@" && shift 2 ;;
        esac
    done
    locate

    put "$here/bin/margay" "$plugin" 755
    put_link margay "$ipam_plugin"
    put "$here/paths.sh" "$own_dir/paths.sh" 644
    put "$here/uninstall.sh" "$own_dir/uninstall.sh" 755
    put "$here/conf/margay-boot.service" "$unit" 644
    unit_files enable margay-boot.service
    put "$here/bin/margayctl" "$ctl" 755
    put_help
    put "$here/bin/margay-agent" "$agent" 755
    put_conf "$here/conf/agent.json" "$agent_conf"
    put_agent_unit
    running_units daemon-reload
    running_units try-restart margay-agent.service
    put_conf "$here/conf/10-margay.conflist" "$conflist"
    warn_of_an_earlier_network
}

# put FILE PLACE MODE
put() {
    if same "$1" "$2"; then
        chmod "$3" "$2"
        return
    fi
    if [ -d "$2" ]; then die "$2 is a folder"; fi
    mkdir -p "${2%/*}"
    partial=${2%/*}/.${2##*/}.partial
    rm -f "$partial"
    cp "$1" "$partial"
    chmod "$3" "$partial"
    flush "$partial"
    mv -f "$partial" "$2"
    flush "${2%/*}"
    say "installed $2"
}

# put_link TARGET PLACE
put_link() {
    if [ "$(readlink "$2" || true)" = "$1" ]; then return; fi
    if [ -d "$2" ]; then die "$2 is a folder"; fi
    partial=${2%/*}/.${2##*/}.partial
    rm -f "$partial"
    ln -s "$1" "$partial"
    mv -f "$partial" "$2"
    say "installed $2"
}

# Without it, a crash of the machine could leave the new name with nothing in it. Busybox may know
# only the `sync` of everything.
flush() {
    sync "$1" 2>/dev/null || sync
}

# margayctl's manual pages and completions, which are many small files.
put_help() {
    for page in "$man_dir"/margayctl.1 "$man_dir"/margayctl-*.1; do
        if [ -e "$page" ] && [ ! -e "$here/man/${page##*/}" ]; then rm "$page"; fi
    done
    for page in "$here"/man/*.1; do put "$page" "$man_dir/${page##*/}" 644; done >/dev/null
    put "$here/completions/margayctl.bash" "$bash_completion" 644 >/dev/null
    put "$here/completions/margayctl.zsh" "$zsh_completion" 644 >/dev/null
    put "$here/completions/margayctl.fish" "$fish_completion" 644 >/dev/null
    say "installed manual pages and completions of margayctl below $root$prefix/share"
}

# The unit has the path of the agent in it.
put_agent_unit() {
    adapted=$own_dir/.margay-agent.service
    sed "s|^ExecStart=/usr/local/|ExecStart=$prefix/|" "$here/conf/margay-agent.service" >"$adapted"
    put "$adapted" "$agent_unit" 644
    rm "$adapted"
}

# put_conf FILE PLACE: the administrator's edits win, as with Debian's conffiles.
put_conf() {
    before=$(shipped_before "$2")
    if [ ! -e "$2" ] && [ -e "$2.saved" ]; then
        mv -f "$2.saved" "$2"
        say "installed $2 as it was before margay was uninstalled"
    fi
    if [ ! -e "$2" ] || same "$before" "$2" || same "$1" "$2"; then
        put "$1" "$2" 644
        rm -f "$2.new"
    elif [ "$replace_conf" = yes ]; then
        cp -p "$2" "$2.old"
        put "$1" "$2" 644
        rm -f "$2.new"
        say "kept the edited one as $2.old"
    elif ! same "$1" "$before"; then
        put "$1" "$2.new" 644
        say "kept $2, which was edited; this version's is $2.new"
    else
        say "kept $2, which was edited"
    fi
    put "$1" "$before" 644
}

# A runtime takes the first file by name.
warn_of_an_earlier_network() {
    first=$(for file in "${conflist%/*}"/*.conf "${conflist%/*}"/*.conflist "${conflist%/*}"/*.json; do
        if [ -e "$file" ]; then echo "${file##*/}"; fi
    done | LC_ALL=C sort | head -n 1)
    if [ "$first" != "${conflist##*/}" ]; then
        say "warning: a runtime that takes the first network by name takes $first"
    fi
}

main "$@"
