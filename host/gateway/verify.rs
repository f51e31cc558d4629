//! Finds the problems that would prevent a start, without starting: builds the same clients from the
//! same configuration without network access, and probes the servers that they would connect to.

use std::path::Path;

use crate::config::Config;
use crate::files::dir_access;
use crate::kafka::ProbeResult;
use crate::mistake::{Mistake, mistake};
use crate::{archive, comets, consumer, kafka};

/// Builds every part that can reject its configuration; one mistake for each that does.
pub fn verify(config: &Config) -> Vec<Mistake> {
    // A property that all clients reject is reported once.
    let kafka = kafka::verify(&config.kafka).and_then(|()| consumer::verify(&config.kafka));
    let mut problems = Vec::from_iter(kafka.err());
    if let Some(folder) = &config.policies.state_dir {
        let refused = dir_access(folder).err().map(|why| why.to_string());
        let refused =
            refused.or_else(|| writable(folder).err().map(|error| format!("cannot be written to: {error}")));
        problems.extend(refused.map(|why| mistake!("policies.state_dir", "{} {why}", folder.display())));
    }
    problems
}

/// Checks that Kafka, the archive's database and the configured comets are reachable and usable.
pub async fn probe(config: &Config) -> Vec<ProbeResult> {
    let mut outputs = vec![("notify", config.offline.notify_topic.as_str())];
    if config.archive.enabled {
        outputs.push(("archive", config.archive.topic.as_str()));
    }
    let archive = async {
        match config.archive.has_database() {
            true => Some(ProbeResult::new("archive database", archive::probe(&config.archive).await)),
            false => None,
        }
    };
    let kafka = kafka::probe(&config.kafka, &outputs);
    let (kafka, comets, archive) = tokio::join!(kafka, comets::probe(&config.comets), archive);
    let comets = comets.into_iter().map(|(comet, found)| {
        let is_warning = found.as_ref().is_ok_and(|comet| comet.is_warning);
        let found = found.map(|comet| comet.text);
        ProbeResult::new(format!("comet {comet}"), found).as_warning(is_warning)
    });
    kafka.into_iter().chain(archive).chain(comets).collect()
}

/// Whether files can be created in a directory or, if it does not exist, in its nearest existing
/// parent.
fn writable(folder: &Path) -> std::io::Result<()> {
    match std::fs::metadata(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => match folder.parent() {
            Some(parent) if parent != Path::new("") => writable(parent),
            _ => writable(Path::new(".")),
        },
        Err(error) => Err(error),
        Ok(found) if found.is_dir() => tempfile::tempfile_in(folder).map(drop),
        Ok(_) => Err(std::io::Error::other(format!("{} is not a directory", folder.display()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_writable_when_files_can_be_made_in_it() {
        let folder = tempfile::tempdir().expect("a directory");
        let file = folder.path().join("file");
        std::fs::write(&file, "").expect("written");
        writable(folder.path()).expect("ours");
        writable(&folder.path().join("new/er")).expect("it can be made");
        let said = writable(&file).expect_err("a file").to_string();
        assert!(said.contains("is not a directory"), "{said}");
        writable(&file.join("below")).expect_err("below a file");
        assert_eq!(std::fs::read_dir(folder.path()).expect("readable").count(), 1, "nothing is left behind");
    }
}
