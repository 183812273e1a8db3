# Reads meta-data, user-data and network-config; writes calls of the shell functions in rcS.
.[0] as $meta | .[1] as $user | (.[2].network // .[2]) as $net |
@sh "set_hostname \($user.hostname // $meta["local-hostname"] // "tiny")",
@sh "host_key \($user.ssh_keys.ed25519_private // "" | rtrimstr("\n"))",
(($user.users // [])[] | select(type == "object") |
    @sh "add_user \(.name) \((.ssh_authorized_keys // []) | join("\n"))"),
(($user.mounts // [])[] | select(type == "array") |
    @sh "mount_disk \(.[0]) \(.[1]) \(.[2] // "auto") \(.[3] // "defaults")"),
(($user.write_files // [])[] | select(type == "object") |
    @sh "write_file \(.path) \(.content // "") \(.append // false) \(.permissions // "0644")"),
(($user.runcmd // [])[] | (if type == "array" then @sh else tostring end) as $command |
    @sh "run_command \($command)"),
@sh "network \([$net.ethernets // {} | .[] | select(.dhcp4) | .match.macaddress // empty | ascii_downcase] | join(" "))",
@sh "# \($meta["instance-id"] // "")"
