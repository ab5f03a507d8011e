# shellcheck shell=sh
# What install.sh and uninstall.sh have in common: where things are, and the options that move them.
# Both source this file; everything it sets is for them.
# shellcheck disable=SC2034

root=${DESTDIR:-}
prefix=/usr/local
bin_dir=/opt/cni/bin
conf_dir=/etc/cni/net.d

SHARED_OPTIONS='  --root DIR       everything goes below DIR, where another system is (default: what DESTDIR says)
  --bin-dir DIR    where the runtime looks for plugins (default /opt/cni/bin)
  --conf-dir DIR   where the runtime looks for networks (default /etc/cni/net.d)
  --prefix DIR     where margay keeps what is its own (default /usr/local)'

# Takes an option of both scripts, which is two words long.
take_option() {
    case $1 in
        --root | --bin-dir | --conf-dir | --prefix) ;;
        *) die "unknown option $1; --help lists them" ;;
    esac
    case ${2-} in
        /*) ;;
        *) die "$1 wants an absolute path" ;;
    esac
    case $1 in
        --root) root=${2%/} ;;
        --bin-dir) bin_dir=${2%/} ;;
        --conf-dir) conf_dir=${2%/} ;;
        --prefix) prefix=${2%/} ;;
    esac
}

# Sets the path of everything. Only now are the options known.
locate() {
    plugin=$root$bin_dir/margay
    ipam_plugin=$root$bin_dir/margay-ipam
    conflist=$root$conf_dir/10-margay.conflist
    own_dir=$root$prefix/lib/margay
    unit=$root$prefix/lib/systemd/system/margay-boot.service
    agent=$root$prefix/sbin/margay-agent
    agent_unit=$root$prefix/lib/systemd/system/margay-agent.service
    agent_conf=$root/etc/margay/agent.json
    ctl=$root$prefix/bin/margayctl
    man_dir=$root$prefix/share/man/man1
    bash_completion=$root$prefix/share/bash-completion/completions/margayctl
    zsh_completion=$root$prefix/share/zsh/site-functions/_margayctl
    fish_completion=$root$prefix/share/fish/vendor_completions.d/margayctl.fish
    pins=$root/sys/fs/bpf/margay
    state_dir=$root/var/lib/margay
    run_dir=$root/run/margay
    log_dir=$root/var/log/margay
}

# A configuration as it was shipped: one that still looks like it has not been edited.
shipped_before() {
    echo "$own_dir/${1##*/}"
}

# systemctl on the system in question; content where there is no systemd.
unit_files() {
    command -v systemctl >/dev/null || return 0
    systemctl --quiet ${root:+"--root=$root"} "$@" ||
        say "systemctl $* failed; that is for you to do"
}

# systemctl on what runs, if that is the system in question.
running_units() {
    if [ -z "$root" ] && [ -d /run/systemd/system ]; then
        systemctl "$@" || say "systemctl $* failed; that is for you to do"
    fi
}

same() {
    cmp -s "$1" "$2"
}

say() {
    echo "$*"
}

die() {
    echo "${0##*/}: $*" >&2
    exit 1
}
