//! The connection whose commits are synced, and the turns that transactions take on it.
//!
//! A sync costs more than all the statements of a small transaction. So one that many may make at the same time, as machines that
//! enrol do, can leave its commit to a group: it ends in a savepoint, the next in the queue goes on in the same transaction of
//! SQLite, and a task that queued behind the first of them commits for all who came before it. Nobody is told that something lasts
//! before it does, and who is alone waits for nobody.
//!
//! ```text
//!       take: BEGIN             commit_together             take: SAVEPOINT
//!  Idle -----------> Taken([]) -----------------> Open([a]) --------------> Taken([a]) --commit_together: RELEASE--> Open([a, b])
//!   ^                 |    |                       |                         |    |
//!   |                 |    '-- dropped: ROLLBACK   |                         |    '-- dropped: ROLLBACK TO --> Open([a])
//!   '---- commit -----'<---------------------------'<---- commit ------------'
//!                            the group's task: COMMIT; all of the group are told
//! ```
//!
//! What one of the group did wrong is undone alone. A group fails as a whole only where the database does: its disk is full, say.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use tokio::sync::{Mutex, OwnedMutexGuard, oneshot};

use super::{Connection, PATIENCE, StoreError, Tried as _};

/// A place in the queue for the connection; clones queue for the same one.
#[derive(Clone)]
pub(super) struct Turns(Arc<Mutex<Turn>>);

struct Turn {
    connection: Connection,
    state: State,
}

/// What happens on the connection, in SQLite's eyes.
enum State {
    /// No transaction.
    Idle,
    /// A transaction that holds what those in the group did, and waits for its commit.
    Open(Group),
    /// Somebody works, in a savepoint if the group is not empty. Found so by the next in the queue, it was given up.
    Taken(Group),
}

/// Those who are told how the commit went.
type Group = Vec<oneshot::Sender<Result<(), Failure>>>;

/// Why a group was not committed, for each of its members.
#[derive(Clone)]
enum Failure {
    Full,
    Other(String),
}

impl Failure {
    fn of(error: &StoreError) -> Self {
        match error {
            StoreError::Full { .. } => Self::Full,
            other => Self::Other(other.to_string()),
        }
    }

    fn of_a_member(self) -> StoreError {
        match self {
            Self::Full => StoreError::Full {
                action: "committing together with other transactions",
            },
            Self::Other(reason) => StoreError::NotTogether { reason },
        }
    }
}

/// A transaction.
pub struct Writer {
    turn: OwnedMutexGuard<Turn>,
    turns: Turns,
    ended: bool,
}

impl Turns {
    pub(super) fn new(connection: Connection) -> Self {
        Self(Arc::new(Mutex::new(Turn {
            connection,
            state: State::Idle,
        })))
    }

    /// A transaction, when its turn comes.
    pub(super) async fn take(&self) -> Result<Writer, StoreError> {
        let action = "beginning a transaction";
        let turn = tokio::time::timeout(PATIENCE, self.0.clone().lock_owned())
            .await
            .map_err(|_| StoreError::Busy { action })?;
        // From here on its drop cleans up, wherever it is given up.
        let mut writer = Writer {
            turn,
            turns: self.clone(),
            ended: false,
        };
        writer.turn.clean().await;
        writer.turn.begin().await?;
        Ok(writer)
    }

    /// Commits what waits for its commit.
    pub(super) async fn end(&self) {
        let mut turn = self.0.lock().await;
        turn.clean().await;
        if matches!(turn.state, State::Open(_)) {
            // Its members are told of the error, and nobody else is here.
            let _ = turn.commit().await;
        }
    }
}

impl Turn {
    async fn execute(&mut self, statement: &'static str) -> Result<(), StoreError> {
        sqlx::query(statement)
            .execute(&mut self.connection)
            .await
            .tried(statement)
            .map(drop)
    }

    /// Takes the group out, for the next state.
    fn group(&mut self) -> Group {
        match std::mem::replace(&mut self.state, State::Idle) {
            State::Idle => Group::new(),
            State::Open(group) | State::Taken(group) => group,
        }
    }

    /// Undoes what somebody began and gave up.
    async fn clean(&mut self) {
        let State::Taken(group) = &self.state else {
            return;
        };
        if group.is_empty() {
            self.undo(None).await;
            return;
        }
        let undone = match self.execute("ROLLBACK TO one").await {
            Ok(()) => self.execute("RELEASE one").await,
            Err(error) => Err(error),
        };
        match undone {
            Ok(()) => self.state = State::Open(self.group()),
            // Errors of the disk make SQLite give up the whole transaction (SQLite, "BEGIN TRANSACTION", 3.2).
            Err(error) => self.undo(Some(&error)).await,
        }
    }

    /// Leaves no transaction; the group is told if there is an error to tell.
    async fn undo(&mut self, error: Option<&StoreError>) {
        // Fails if there is no transaction any more, which is as good.
        let _ = self.execute("ROLLBACK").await;
        let group = self.group();
        if let Some(error) = error {
            tell(group, &Err(Failure::of(error)));
        }
    }

    /// Begins a transaction, or a savepoint in the group's.
    async fn begin(&mut self) -> Result<(), StoreError> {
        let open = matches!(self.state, State::Open(_));
        self.state = State::Taken(self.group());
        // IMMEDIATE takes the write lock at once; a deferred one could fail at its first write, after having read.
        self.execute(if open {
            "SAVEPOINT one"
        } else {
            "BEGIN IMMEDIATE"
        })
        .await
    }

    /// Ends the work of the one whose turn it is, and leaves its commit to the group.
    async fn join(&mut self) -> Result<Joined, StoreError> {
        let first = matches!(&self.state, State::Taken(group) if group.is_empty());
        if !first {
            self.execute("RELEASE one").await?;
        }
        let (member, told) = oneshot::channel();
        let mut group = self.group();
        group.push(member);
        self.state = State::Open(group);
        Ok(Joined { first, told })
    }

    /// Commits everything that was done since the transaction began, and tells the group.
    async fn commit(&mut self) -> Result<(), StoreError> {
        match self.execute("COMMIT").await {
            Ok(()) => {
                tell(self.group(), &Ok(()));
                Ok(())
            }
            Err(error) => {
                self.undo(Some(&error)).await;
                Err(error)
            }
        }
    }
}

/// A member of a group waits for its commit.
struct Joined {
    /// Whether it is the group's first.
    first: bool,
    told: oneshot::Receiver<Result<(), Failure>>,
}

fn tell(group: Group, outcome: &Result<(), Failure>) {
    for member in group {
        // Who went away does not want to know.
        let _ = member.send(outcome.clone());
    }
}

impl Writer {
    /// Makes everything in it last. When this returns, it is on the disk.
    ///
    /// # Errors
    /// [`StoreError::Full`], [`StoreError::Database`]; nothing was written then.
    pub async fn commit(mut self) -> Result<(), StoreError> {
        let committed = self.turn.commit().await;
        self.ended = true;
        committed
    }

    /// Makes everything in it last, in one commit with others who write at this time. When this returns, it is on the disk. What others
    /// of the group do after their commits may come before what this caller does, or after it.
    ///
    /// # Errors
    /// [`StoreError::Full`], [`StoreError::Database`], [`StoreError::NotTogether`]; nothing was written then.
    pub async fn commit_together(mut self) -> Result<(), StoreError> {
        let Joined { first, told } = self.turn.join().await?;
        self.ended = true;
        if first {
            // It queues behind all who wait by now: they are the group.
            let turns = self.turns.clone();
            tokio::spawn(async move { turns.end().await });
        }
        drop(self);
        match told.await {
            Ok(outcome) => outcome.map_err(Failure::of_a_member),
            Err(_) => Err(StoreError::NotTogether {
                reason: "the controller is stopping".to_owned(),
            }),
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.ended {
            // Whoever comes next undoes it; so that it does not hold SQLite's lock until then, somebody comes at once.
            let turns = self.turns.clone();
            if let Ok(runtime) = tokio::runtime::Handle::try_current() {
                runtime.spawn(async move { turns.end().await });
            }
        }
    }
}

impl Deref for Writer {
    type Target = Connection;
    fn deref(&self) -> &Connection {
        &self.turn.connection
    }
}

impl DerefMut for Writer {
    fn deref_mut(&mut self) -> &mut Connection {
        &mut self.turn.connection
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use super::*;
    use crate::store::Store;
    use crate::store::tests::fresh;

    /// Counts what is committed from now on.
    async fn counted(store: &Store) -> Arc<AtomicU32> {
        let commits = Arc::new(AtomicU32::new(0));
        let counter = commits.clone();
        let mut turn = store.turns.0.lock().await;
        let mut handle = turn.connection.lock_handle().await.unwrap();
        handle.set_commit_hook(move || {
            counter.fetch_add(1, Ordering::Relaxed);
            true
        });
        commits
    }

    async fn insert(connection: &mut Connection, name: &str) -> Result<(), StoreError> {
        sqlx::query("INSERT INTO counters (name, value) VALUES ($1, 0)")
            .bind(name)
            .execute(connection)
            .await
            .tried("inserting")
            .map(drop)
    }

    async fn is_there(store: &Store, name: &str) -> bool {
        let mut reader = store.read().await.unwrap();
        sqlx::query("SELECT 1 FROM counters WHERE name = $1")
            .bind(name)
            .fetch_optional(&mut *reader)
            .await
            .unwrap()
            .is_some()
    }

    /// Inserts a row and leaves its commit to the group.
    async fn insert_together(store: Store, name: &'static str) -> Result<(), StoreError> {
        let mut writer = store.write().await?;
        insert(&mut writer, name).await?;
        writer.commit_together().await
    }

    /// Lets all who are spawned run until they wait for their turn.
    async fn all_queue() {
        for _ in 0..16 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn who_queues_at_the_same_time_shares_a_commit() {
        let (_directory, store) = fresh().await;
        let commits = counted(&store).await;
        let mut first = store.write().await.unwrap();
        let others = ["b", "c", "d"].map(|name| tokio::spawn(insert_together(store.clone(), name)));
        all_queue().await;
        insert(&mut first, "a").await.unwrap();
        first.commit_together().await.unwrap();
        assert!(is_there(&store, "a").await, "told before it was committed");
        for other in others {
            other.await.unwrap().unwrap();
        }
        for name in ["b", "c", "d"] {
            assert!(is_there(&store, name).await, "{name}");
        }
        assert_eq!(commits.load(Ordering::Relaxed), 1);
        insert_together(store.clone(), "alone").await.unwrap();
        assert_eq!(commits.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn who_gives_up_is_undone_alone() {
        let (_directory, store) = fresh().await;
        let mut first = store.write().await.unwrap();
        let giving_up = tokio::spawn({
            let store = store.clone();
            async move {
                let mut writer = store.write().await.unwrap();
                insert(&mut writer, "given up").await.unwrap();
            }
        });
        let last = tokio::spawn(insert_together(store.clone(), "last"));
        all_queue().await;
        insert(&mut first, "first").await.unwrap();
        first.commit_together().await.unwrap();
        giving_up.await.unwrap();
        last.await.unwrap().unwrap();
        assert!(is_there(&store, "first").await && is_there(&store, "last").await);
        assert!(!is_there(&store, "given up").await);
    }

    #[tokio::test]
    async fn a_commit_alone_takes_the_group_along() {
        let (_directory, store) = fresh().await;
        let commits = counted(&store).await;
        let mut first = store.write().await.unwrap();
        let alone = tokio::spawn({
            let store = store.clone();
            async move {
                let mut writer = store.write().await.unwrap();
                insert(&mut writer, "alone").await.unwrap();
                writer.commit().await.unwrap();
            }
        });
        all_queue().await;
        insert(&mut first, "first").await.unwrap();
        first.commit_together().await.unwrap();
        alone.await.unwrap();
        assert!(is_there(&store, "first").await && is_there(&store, "alone").await);
        assert_eq!(commits.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn a_group_whose_commit_fails_learns_it_and_leaves_nothing() {
        let (_directory, store) = fresh().await;
        let mut first = store.write().await.unwrap();
        let second = tokio::spawn(insert_together(store.clone(), "second"));
        all_queue().await;
        {
            let mut handle = first.lock_handle().await.unwrap();
            // SQLite turns a commit into a rollback if the hook says so, as it would for a disk that fails.
            handle.set_commit_hook(|| false);
        }
        insert(&mut first, "first").await.unwrap();
        let failed = first.commit_together().await.unwrap_err().to_string();
        assert!(failed.contains("nothing was written"), "{failed}");
        second.await.unwrap().unwrap_err();
        store
            .turns
            .0
            .lock()
            .await
            .connection
            .lock_handle()
            .await
            .unwrap()
            .remove_commit_hook();
        assert!(!is_there(&store, "first").await && !is_there(&store, "second").await);
        insert_together(store.clone(), "later").await.unwrap();
        assert!(is_there(&store, "later").await);
    }

    #[tokio::test]
    async fn a_full_disk_is_said_and_the_next_goes_on() {
        let (_directory, store) = fresh().await;
        let mut writer = store.write().await.unwrap();
        let pages: i64 = sqlx::query_scalar("PRAGMA page_count")
            .fetch_one(&mut *writer)
            .await
            .unwrap();
        let limit = |pages: i64| sqlx::AssertSqlSafe(format!("PRAGMA max_page_count = {pages}"));
        sqlx::query(limit(pages))
            .fetch_one(&mut *writer)
            .await
            .unwrap();
        let long: &'static str = "x".repeat(1 << 20).leak();
        let failed = insert(&mut writer, long).await.unwrap_err();
        assert!(matches!(failed, StoreError::Full { .. }), "{failed}");
        drop(writer);
        insert_together(store.clone(), "short").await.unwrap();
        assert!(is_there(&store, "short").await);
    }

    #[tokio::test]
    async fn a_transaction_that_is_given_up_frees_the_others_at_once() {
        let (_directory, store) = fresh().await;
        let mut writer = store.write().await.unwrap();
        insert(&mut writer, "given up").await.unwrap();
        drop(writer);
        let lazy = tokio::time::timeout(Duration::from_secs(5), store.write_soon());
        lazy.await.unwrap().unwrap().commit().await.unwrap();
        assert!(!is_there(&store, "given up").await);
    }
}
