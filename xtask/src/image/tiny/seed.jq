# Reads meta-data, user-data and network-config; writes calls of the shell functions in rcS.
def hex: explode | reduce .[] as $c (0; . * 16 + (if $c > 96 then $c - 87 elif $c > 64 then $c - 55 else $c - 48 end));
# JSON, but for characters above U+FFFF: they are written as YAML writes them.
def seed: gsub("(?<!\\\\)(?<even>(?:\\\\\\\\)*)\\\\U(?<code>[0-9A-F]{8})"; .even + ([.code | hex] | implode)) | fromjson;
.[0] as $meta | ($text | gsub("(^|\n)#[^\n]*"; "") | seed) as $user | (.[1].network // .[1]) as $net |
@sh "set_hostname \($user.hostname // $meta["local-hostname"] // "tiny")",
@sh "host_key \($user.ssh_keys.ed25519_private // "" | rtrimstr("\n"))",
(($user.user // {}) as $default |
    (($default | select(.name) | .ssh_authorized_keys += ($user.ssh_authorized_keys // [])),
        (($user.users // [])[] | select(type == "object" and .name != $default.name))) |
    @sh "add_user \(.name) \((.ssh_authorized_keys // []) | join("\n"))"),
(($user.mounts // [])[] | select(type == "array") |
    @sh "mount_disk \(.[0]) \(.[1]) \(.[2] // "auto") \(.[3] // "defaults")"),
(($user.write_files // [])[] | select(type == "object") |
    @sh "write_file \(.path) \(.content // "") \(.append // false) \(.permissions // "0644")"),
(($user.runcmd // [])[] | (if type == "array" then @sh else tostring end) as $command |
    @sh "run_command \($command)"),
@sh "network \([$net.ethernets // {} | .[] | select(.dhcp4) | .match.macaddress // empty | ascii_downcase] | join(" "))",
@sh "# \($meta["instance-id"] // "")"
