#!/bin/sh
# Uninstalls margay: the network configuration first, so that no runtime begins anything with plugins
# that are about to go.
#
# What pods that still run need is left alone; addresses and endpoints stay unless purged. Running it
# again takes away what has come to be without use.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=dist/paths.sh
. "$here/paths.sh"

usage() {
    cat <<END
usage: uninstall.sh [OPTION...]
Uninstalls margay. Addresses, endpoints, logs and edited configurations stay.

$SHARED_OPTIONS
  --force          go on though pods are left: they keep their network, but nothing can remove them
                   properly until margay is installed again
  --purge          take away everything, addresses and logs and edits too
END
}

main() {
    force=no purge=no
    while [ $# -gt 0 ]; do
        case $1 in
            -h | --help) usage && exit ;;
            --force) force=yes && shift ;;
            --purge) purge=yes && shift ;;
            *) take_option "$@" && shift 2 ;;
        esac
    done
    locate

    pods=$(count_pods)
    if [ "$pods" != 0 ] && [ "$force" = no ]; then
        die "$pods pod interface(s) of margay on this node: remove the pods first, or use --force"
    fi
    remove_conf "$conflist"
    # One that came before the conflist went.
    pods=$(count_pods)
    remove_agent
    remove "$ipam_plugin" "$plugin"
    remove "$ctl" "$man_dir"/margayctl.1 "$man_dir"/margayctl-*.1
    remove "$man_dir"/.margayctl*.partial
    remove "$bash_completion" "$zsh_completion" "$fish_completion"
    for help in "$man_dir/" "$bash_completion" "$zsh_completion" "$fish_completion"; do
        remove_empty "${help%/*}"
    done
    remove_unit "$unit"
    if [ "$pods" = 0 ] || [ "$purge" = yes ]; then
        remove_dataplane
    else
        say "kept $pins and the firewall's table, which pods use"
    fi
    if [ "$purge" = yes ]; then
        for conf in "$conflist" "$agent_conf"; do
            remove "$conf.saved" "$conf.new" "$conf.old"
        done
        remove "$state_dir" "$log_dir"
    fi
    rmdir "${agent_conf%/*}" 2>/dev/null || true
    remove "$own_dir"
}

# Host ends of veth pairs, by their names. Other network namespaces have none, so where the root is the
# host's as a container sees it, the host's namespace is asked as well.
count_pods() {
    cat /proc/self/net/dev ${root:+"$root/proc/1/net/dev"} 2>/dev/null |
        sed -n 's/^ *\(mgy[0-9a-f]\{12\}\):.*/\1/p' | sort -u | grep -c . || true
}

remove_conf() {
    if [ -e "$1" ] && ! same "$(shipped_before "$1")" "$1" && [ "$purge" = no ]; then
        mv -f "$1" "$1.saved"
        say "moved $1, which was edited, to $1.saved"
    fi
    remove "$1"
}

# Before what it looks after, which it would make again.
remove_agent() {
    if [ -e "$agent_unit" ]; then running_units stop margay-agent.service; fi
    remove_unit "$agent_unit"
    remove "$agent"
    remove_conf "$agent_conf"
}

remove_unit() {
    if [ -e "$1" ]; then unit_files disable "${1##*/}"; fi
    remove "$1"
    running_units daemon-reload
}

# Maps, programs, the table that masquerades, locks. Pods' filters hold programs and maps alive
# without pins, but nobody would find them any more; links of TCX are held by their pins alone.
remove_dataplane() {
    if is_running && command -v nft >/dev/null && nft list table inet margay >/dev/null 2>&1; then
        nft delete table inet margay
        say "removed the firewall's table inet margay"
    fi
    remove "$pins" "$run_dir"
}

# Whether the system below the root is the one that runs, and not an image of one.
is_running() {
    [ -z "$root" ] || grep -qF " $root/sys/fs/bpf bpf " /proc/self/mounts
}

remove() {
    for path in "$@"; do
        remove_one "$path"
        # What an interrupted install may have left.
        remove_one "${path%/*}/.${path##*/}.partial"
    done
}

# A folder below the prefix's share, and those above it that it leaves empty; never share itself, which install may
# not have made either.
remove_empty() {
    folder=$1
    while [ "${folder%/*}" != "$root$prefix" ] && rmdir "$folder" 2>/dev/null; do
        folder=${folder%/*}
    done
}

remove_one() {
    if [ -e "$1" ] || [ -L "$1" ]; then
        rm -rf "$1"
        say "removed $1"
    fi
}

main "$@"
