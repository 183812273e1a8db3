//! The cases. Those that share a VM stand together, and in the order in which they run.

mod attribute;
mod bridge;
mod cli;
mod cluster;
mod configure;
mod coordination;
pub(crate) mod debian;
mod disk;
mod files;
pub(crate) mod fixture;
mod images;
pub(crate) mod kills;
mod life;
mod network;
mod package;
mod refusal;
mod shell;
mod verbs;
mod vmm;

use std::time::Duration;

use crate::runner::{Case, Lane, Needs};
use crate::suite::Suite;

/// For cases that start no guest.
const SHORT: Duration = Duration::from_secs(120);
/// For cases that boot the tiny image a few times.
const TINY: Duration = Duration::from_secs(600);
/// For cases that boot Debian's image once.
const DEBIAN: Duration = Duration::from_secs(1500);

/// All cases, in their order.
pub(crate) fn all() -> Vec<Case> {
    use Needs::{Hardware, Nothing, Software, TwoCpus};
    let case = |lane, needs, deadline| {
        move |name: &'static str, run: fn(&Suite)| Case {
            name,
            lane,
            needs,
            deadline,
            run,
        }
    };
    let plain = case(Lane::Tiny, Nothing, SHORT);
    let refused = case(Lane::Tiny, Software, SHORT);
    let tiny = case(Lane::Tiny, Hardware, TINY);
    let smp = case(Lane::Tiny, TwoCpus, TINY);
    let debian = case(Lane::Debian, Hardware, DEBIAN);
    vec![
        plain("image_download_is_resumed", images::download_is_resumed),
        plain(
            "image_with_wrong_checksum_leaves_nothing",
            images::wrong_checksum,
        ),
        refused("software_kvm_is_refused_by_up", refusal::up),
        refused("software_kvm_is_refused_by_the_library", refusal::library),
        refused("software_kvm_is_refused_by_the_vmm", refusal::vmm),
        refused(
            "software_kvm_skips_tests_or_fails_them",
            attribute::without_vms,
        ),
        // These share a VM.
        tiny("tiny_two_vms_at_once", life::two_at_once),
        tiny("tiny_ssh_output_and_status", shell::output_and_status),
        tiny("tiny_ssh_streams_input", shell::streams_input),
        tiny("tiny_pty", shell::pty),
        tiny("tiny_nested_virtualisation", shell::nested),
        tiny("tiny_tcp_out", network::tcp_out),
        tiny("tiny_tcp_refused", network::tcp_refused),
        tiny("tiny_dns", network::dns),
        tiny("tiny_connect_and_forward", network::connect_and_forward),
        tiny("tiny_large_file", disk::large_file),
        tiny("tiny_copy_a_directory", files::directory),
        tiny("tiny_read_and_write_files", files::read_and_write),
        tiny("tiny_copy_throughput", files::throughput),
        tiny("tiny_drop_destroys", life::drop_destroys),
        tiny("tiny_configuration", configure::all),
        tiny("tiny_too_much_is_refused", configure::too_much),
        // So do these.
        tiny("tiny_fixture", fixture::content),
        tiny("tiny_stop_and_start_keep_the_disk", life::stop_and_start),
        tiny("tiny_fixture_is_refreshed", fixture::refreshed),
        tiny("tiny_reboot", life::reboot),
        tiny("tiny_second_kernel_boots_next", life::second_kernel),
        tiny("tiny_blocking_facade", life::blocking),
        tiny("tiny_kill_machine", kills::machine),
        tiny("tiny_kill_worker", kills::worker),
        tiny("tiny_kill_owner", kills::owner),
        tiny("tiny_kill_owner_of_a_test_vm", kills::owner_of_test_vm),
        tiny("tiny_fixture_with_a_socket_is_refused", fixture::refused),
        tiny("tiny_cluster_of_three", cluster::of_three),
        tiny("tiny_cli_cluster", cluster::by_commands),
        tiny("tiny_full_disk_of_the_host", disk::full_on_the_host),
        tiny("tiny_bridge", bridge::joined_to_the_host),
        tiny("tiny_cli", cli::life_cycle),
        tiny(
            "tiny_cli_commands_in_each_others_way",
            coordination::of_commands,
        ),
        tiny("tiny_cli_two_runs_at_once", verbs::two_runs),
        tiny("tiny_cli_work_tree", verbs::work_tree),
        tiny("tiny_failed_test_shows_its_guest", attribute::failing),
        tiny("tiny_tests_take_turns_for_memory", attribute::passing),
        smp("tiny_two_vcpus", shell::two_vcpus),
        tiny("tiny_damaged_image", images::damaged),
        tiny("vmm_runs_an_image_to_its_login_prompt", vmm::login_prompt),
        debian("debian_library", debian::library),
        debian("debian_configuration", debian::configured),
        debian("debian_nested_virtualisation", debian::nested),
        debian("debian_failed_unit", debian::failed_unit),
        debian("debian_fixture", debian::fixture),
        debian("debian_network", debian::network),
        debian("debian_large_file", debian::large_file),
        debian("debian_second_kernel_boots_next", debian::second_kernel),
        debian("debian_cli", debian::cli),
    ]
}
