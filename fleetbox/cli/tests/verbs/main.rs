//! The program where it needs no running VM: refusals, configuration, what is generated.

mod arguments;
mod doctor;
mod generate;
mod host;
mod images;
mod json;
mod logs;
mod messages;
mod names;
mod narrow;
mod remove;
mod set;
mod show;
mod ssh_config;
mod up;
mod work_trees;
