#!/usr/bin/env bash
# A workstation, 10.77.0.1, and two machines behind it with an sshd each: head, 10.77.0.11, and worker, 10.77.0.12.
# All of it, interfaces and mounts too, is in namespaces of the first process and is gone when that is:
#   unshare --net --mount --pid --uts --ipc --fork --kill-child --mount-proc lab.sh VISIBLE...
# Each machine has its own network, processes, host name, /home, /tmp and /dev/shm. They share /srv, and see the rest of
# this one, which they cannot change; of its directories that theirs hide they see VISIBLE, what the tests run with.
# The environment gives VENV and, in lines of NAME=VALUE, MACHINE_ENVIRONMENT.
set -euo pipefail

machines=(head worker) network=10.77.0
visible=("$@")

# hide DIRECTORY: an empty one over it. It is made elsewhere, where what it hides can still be reached.
hide() {
    local path mode=755
    [[ $1 == /tmp || $1 == /dev/shm ]] && mode=1777
    mount -t tmpfs -o mode=$mode lab /mnt
    for path in "${visible[@]}"; do
        if [[ $path == "$1"/* ]]; then
            mkdir -p "/mnt${path#"$1"}"
            mount --rbind "$path" "/mnt${path#"$1"}"
        fi
    done
    mount --rbind /mnt "$1"
    umount --recursive --lazy /mnt
}

# become NAME: what the workstation and the machines have in common.
become() {
    hostname "$1"
    hide /home && hide /tmp && hide /dev/shm
    export HOME=/home/ray
    install -d -m 700 "$HOME" "$HOME/.ssh"
    cp /etc/skel/.bashrc "$HOME"  # Debian's, which returns early for shells that are not interactive
    ln -s "$VENV" "$HOME/venv"
    # The users of local.yaml and gpu.yaml. Root's number, because the Python that made the venv may be root's alone.
    { printf '%s:x:0:0::/home/ray:/bin/bash\n' ray ubuntu; cat /etc/passwd; } > /home/passwd
    { echo 127.0.0.1 localhost; for i in "${!machines[@]}"; do echo "$network.$((11 + i)) ${machines[i]}"; done; } > /home/hosts
    mount --bind /home/passwd /etc/passwd
    mount --bind /home/hosts /etc/hosts
}

# machine NAME ADDRESS KEY: its first process, which is its sshd.
machine() {
    become "$1"
    echo "$3" > "$HOME/.ssh/authorized_keys"
    echo "$MACHINE_ENVIRONMENT" > "$HOME/.ssh/environment"
    ssh-keygen -q -t ed25519 -N '' -f /home/host_key
    cat > /home/sshd_config <<END
ListenAddress $2
HostKey /home/host_key
PasswordAuthentication no
PermitRootLogin prohibit-password
PermitUserEnvironment yes
UsePAM no
PidFile none
MaxStartups 100
MaxSessions 100
END
    exec /usr/sbin/sshd -D -e -f /home/sshd_config
}

workstation() {
    local i name
    mount -o remount,bind,ro /
    hide /run && hide /srv
    mkdir -p /run/sshd /run/netns
    become workstation
    ssh-keygen -q -t ed25519 -N '' -f "$HOME/.ssh/id_ed25519"
    ip link set lo up
    ip link add hub type bridge
    ip addr add "$network.1/24" dev hub
    ip link set hub up
    for i in "${!machines[@]}"; do
        name=${machines[i]}
        ip netns add "$name"
        ip link add "$name" type veth peer name eth0 netns "$name"
        ip link set "$name" master hub up
        ip -n "$name" link set lo up
        ip -n "$name" addr add "$network.$((11 + i))/24" dev eth0
        ip -n "$name" link set eth0 up
        ip -n "$name" route add default via "$network.1"  # asked of by programs that want to know their own address
        nsenter --net="/run/netns/$name" unshare --mount --pid --uts --ipc --fork --kill-child --mount-proc \
            "$0" --machine "$name" "$network.$((11 + i))" "$(cat "$HOME/.ssh/id_ed25519.pub")" "${visible[@]}" &
    done
    for name in "${machines[@]}"; do
        until ssh -o StrictHostKeyChecking=no -o LogLevel=ERROR "ray@$name" true; do sleep 0.1; done
    done
    echo ready
    wait
}

if [[ ${1-} == --machine ]]; then
    visible=("${@:5}")
    machine "${@:2:3}"
else
    workstation
fi
