//! A MariaDB for one test, with an empty database and a user of its own.

use std::process::Command;

use sqlx::mysql::{MySqlConnection, MySqlRow};
use sqlx::{AssertSqlSafe, Connection as _, Row as _};

use super::child_process::ChildProcess;
use super::{PATIENCE, eventually, folder, free_port, print_uncaptured, repository};

/// The user and its password; `@` and `/` have to be percent-encoded in URLs.
const USERS: &str = "CREATE DATABASE IF NOT EXISTS halley;
CREATE USER IF NOT EXISTS 'halley'@'%' IDENTIFIED BY 's@/cret';
GRANT ALL PRIVILEGES ON halley.* TO 'halley'@'%';
CREATE USER IF NOT EXISTS 'admin'@'%' IDENTIFIED BY 'admin';
GRANT ALL PRIVILEGES ON *.* TO 'admin'@'%';
";

/// A server; it ends with this value.
pub struct MariaDb {
    port: u16,
    process: ChildProcess,
}

impl MariaDb {
    /// Starts a server, and waits until it answers. `None` where MariaDB cannot be had; prints that.
    pub async fn start(story: &str) -> Option<Self> {
        Self::start_with(story, &[]).await
    }

    /// The same with additional arguments, or with a file of options, which a restart reads again.
    pub async fn start_with(story: &str, more: &[String]) -> Option<Self> {
        let output = Command::new("sh").arg(repository("tests/support/fetch-mariadb.sh")).output();
        let output = output.expect("sh");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.code() == Some(3) {
            print_uncaptured(format_args!("NOT PROVEN: `{story}` needs MariaDB: {said}"));
            return None;
        }
        assert!(output.status.success(), "fetch-mariadb.sh: {said}");
        let lines = String::from_utf8_lossy(&output.stdout).into_owned();
        let [server, base, data] = lines.lines().collect::<Vec<_>>()[..] else {
            panic!("three lines: {lines}")
        };
        let folder = folder("mariadb");
        let own = folder.path().join("data");
        let copied = Command::new("cp").args(["-r", data]).arg(&own).status();
        assert!(copied.is_ok_and(|status| status.success()), "cp -r {data}");
        let init = folder.path().join("init.sql");
        std::fs::write(&init, USERS).expect("a temporary file can be written");
        let port = free_port();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let (files, more): (Vec<_>, Vec<_>) =
            more.iter().cloned().partition(|argument| argument.starts_with("--defaults-file="));
        let defaults = files.into_iter().next().unwrap_or_else(|| "--no-defaults".to_owned());
        let mut args = vec![
            defaults,
            format!("--basedir={base}"),
            format!("--datadir={}", own.display()),
            format!("--init-file={}", init.display()),
            format!("--port={port}"),
            "--bind-address=127.0.0.1".to_owned(),
            format!("--socket={}", path("socket")),
            format!("--pid-file={}", path("pid")),
            format!("--user={}", user()),
            "--skip-name-resolve".to_owned(),
            "--innodb-buffer-pool-size=32M".to_owned(),
            "--innodb-log-file-size=8M".to_owned(),
            // Not strict: what would be shortened silently must be found nevertheless.
            "--sql-mode=".to_owned(),
        ];
        args.extend(more);
        let libraries = format!("{base}/lib/x86_64-linux-gnu:{base}/lib/aarch64-linux-gnu");
        let environment = [("LD_LIBRARY_PATH".to_owned(), libraries)];
        let environment = if base == "/usr" { &[][..] } else { &environment };
        let process = ChildProcess::start_with(server, &args, folder, environment).expect("starts");
        let mut server = Self { port, process };
        server.wait_until_it_answers().await;
        Some(server)
    }

    /// Kills it as a crash would.
    pub fn stop(&mut self) {
        self.process.kill();
    }

    /// Restarts it with its data, and waits until it answers.
    pub async fn restart(&mut self) {
        self.process.restart().expect("starts again");
        self.wait_until_it_answers().await;
    }

    /// Sends it a signal: `STOP`, `CONT`.
    pub fn signal(&self, signal: &str) {
        self.process.signal(signal);
    }

    /// For `[archive] url`.
    pub fn url(&self) -> String {
        self.url_at("127.0.0.1", "")
    }

    /// The same with another name of the host, and with properties of the connection.
    pub fn url_at(&self, host: &str, properties: &str) -> String {
        format!("mysql://halley:s%40%2Fcret@{host}:{}/halley{properties}", self.port)
    }

    /// Runs a statement as an administrator of the server.
    pub async fn run(&self, statement: &str) {
        let mut connection = self.admin().await.expect("the server answers");
        sqlx::query(AssertSqlSafe(statement.to_owned())).execute(&mut connection).await.expect(statement);
    }

    /// The same if the server may refuse it.
    ///
    /// # Errors
    /// If it does.
    pub async fn try_run(&self, statement: &str) -> sqlx::Result<()> {
        let mut connection = self.admin().await?;
        sqlx::query(AssertSqlSafe(statement.to_owned())).execute(&mut connection).await.map(drop)
    }

    /// The rows of a query.
    pub async fn rows(&self, query: &str) -> Vec<MySqlRow> {
        let mut connection = self.admin().await.expect("the server answers");
        sqlx::query(AssertSqlSafe(query.to_owned())).fetch_all(&mut connection).await.expect(query)
    }

    /// The number that a query returns.
    pub async fn number(&self, query: &str) -> i64 {
        self.rows(query).await[0].try_get(0).expect("a number")
    }

    /// The number of archived rows; 0 without the tables.
    pub async fn archived(&self) -> i64 {
        let Ok(mut connection) = self.admin().await else { return 0 };
        let count = sqlx::query("SELECT COUNT(*) FROM halley_inbox").fetch_one(&mut connection).await;
        count.map_or(0, |row| row.try_get(0).expect("a number"))
    }

    async fn admin(&self) -> sqlx::Result<MySqlConnection> {
        MySqlConnection::connect(&format!("mysql://admin:admin@127.0.0.1:{}/halley", self.port)).await
    }

    async fn wait_until_it_answers(&mut self) {
        let what = format!("MariaDB at port {}", self.port);
        eventually(what, PATIENCE, async || {
            let ended = self.process.ended();
            assert!(ended.is_none(), "mariadbd ended with {ended:?}: {}", self.process.log());
            self.admin().await.ok()
        })
        .await;
    }
}

fn user() -> String {
    let output = Command::new("id").arg("-un").output().expect("id");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
