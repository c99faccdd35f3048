// A chat client for `im serve`, and the page that uses it. No build step, no dependency.
//
// The first half is `ImClient`: it connects and reconnects, keeps its own database, sends what was written offline,
// says what was shown (acks) and knows who has read what. It knows nothing of the page: copy it into yours.
//
//     const client = await ImClient.open({ token });
//     client.addEventListener('messages', ({ detail }) => show(detail.gid));   // something new is in the database
//     const page = await client.messages(gid);                                 // the newest messages, oldest first
//     await client.send({ gid, content: 'hello' });                            // online or not: it goes out once
//     client.shown(gid, message.at);                                           // a person has seen it: this is the ack
//
// The second half is the page. It begins at "The page" below.

// ---------------------------------------------------------------------------------------------------------------------
// Positions
// ---------------------------------------------------------------------------------------------------------------------

// A msgid is `<ms>-<n>`. As one number it sorts in the server's order, and it is exact in a double until 2054.
// `imcore.msgid` packs it in the same way. A packed msgid is called `at` here; 0 is before the first message.
const EPOCH_MS = 1577836800000;

export function pack(msgid) {
  if (msgid === null || msgid === undefined || msgid === '0-0') return 0;
  const [ms, n] = msgid.split('-').map(Number);
  return (ms - EPOCH_MS) * 8192 + n;
}

export function unpack(at) {
  return at ? `${Math.floor(at / 8192) + EPOCH_MS}-${at % 8192}` : '0-0';
}

export const timeOf = (at) => new Date(Math.floor(at / 8192) + EPOCH_MS);

// What this browser has of a group is a list of ranges: [[low, high], ...], sorted, both ends included. Within a range
// no message is missing; between two ranges something may be. All that is shown comes from one range at a time, so
// there is never a silent hole. Adding a range is a union: it may come twice, late or from another tab, and the list
// stays true.

export function withRange(ranges, low, high) {
  if (low > high) return ranges;
  const apart = ranges.filter(([from, to]) => to < low - 1 || from > high + 1);
  const joined = ranges.filter(([from, to]) => to >= low - 1 && from <= high + 1);
  const range = [Math.min(low, ...joined.map(([from]) => from)), Math.max(high, ...joined.map(([, to]) => to))];
  return [...apart, range].sort(([one], [other]) => one - other);
}

export function rangeAt(ranges, at) {
  return ranges.find(([low, high]) => low <= at && at <= high);
}

const highest = (ranges) => (ranges.length ? ranges.at(-1)[1] : 0);

// ---------------------------------------------------------------------------------------------------------------------
// The local database
// ---------------------------------------------------------------------------------------------------------------------

const answer = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

/** Yield the values of a cursor, for as long as one asks. */
async function* walk(source, range, direction) {
  const request = source.openCursor(range, direction);
  for (let cursor = await answer(request); cursor; cursor = await answer(request)) {
    yield cursor.value;
    cursor.continue();
  }
}

const isVisible = (message) => message.sender_uid !== undefined && !message.recalls;

/**
 * Messages by (gid, at), ranges and read positions by gid, and the outbox by client_msgid: of one user of one server.
 */
class LocalDatabase {
  #db;

  static async open(name) {
    const request = indexedDB.open(name, 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore('messages', { keyPath: ['gid', 'at'] });
      request.result.createObjectStore('groups', { keyPath: 'gid' });
      request.result.createObjectStore('outbox', { keyPath: 'client_msgid' }).createIndex('order', 'order');
      request.result.createObjectStore('settings');
    };
    const database = new LocalDatabase();
    database.#db = await answer(request);
    database.#db.onversionchange = () => database.close(); // somebody clears this site's data
    return database;
  }

  close() {
    this.#db.close();
  }

  // Several tabs write here at once. Each change reads and writes within one transaction, so none undoes another's.
  async #transaction(names, mode, work, options = {}) {
    const transaction = this.#db.transaction(names, mode, options);
    const stored = new Promise((resolve, reject) => {
      transaction.oncomplete = resolve;
      transaction.onabort = () => reject(transaction.error ?? new Error('the local database refused a change'));
    });
    const result = await work(...names.map((name) => transaction.objectStore(name)));
    await stored;
    return result;
  }

  /** Bind this database to the server's data. If the server has other data now, forget all but what was not sent. */
  async bind(dataset) {
    return this.#transaction(['settings', 'messages', 'groups'], 'readwrite', async (settings, messages, groups) => {
      const bound = await answer(settings.get('dataset'));
      if (bound === dataset) return false;
      settings.put(dataset, 'dataset');
      if (bound === undefined) return false;
      messages.clear();
      groups.clear();
      return true;
    });
  }

  async groups() {
    return this.#transaction(['groups'], 'readonly', (groups) => answer(groups.getAll()));
  }

  /** Change what is noted of a group: `change` gets the record, and returns the fields that are to change. */
  async note(gid, change) {
    return this.#transaction(['groups'], 'readwrite', (groups) => this.#change(groups, gid, change));
  }

  /** Forget what is here of a group that the user has left, or that has another name now. */
  async forget(gid) {
    return this.#transaction(['messages', 'groups'], 'readwrite', (messages, groups) => {
      messages.delete(IDBKeyRange.bound([gid, 0], [gid, Infinity]));
      if (isDirect(gid)) groups.delete(gid); // its gid may say the name of an erased user
      else return this.#change(groups, gid, () => ({ left: true, ranges: [] }));
    });
  }

  /** Forget the messages of a group if users were erased there since; return whether there were any. */
  async followErasures(gid, lastErasure) {
    return this.#transaction(['messages', 'groups'], 'readwrite', async (messages, groups) => {
      const group = await answer(groups.get(gid));
      if (!group || (group.lastErasure ?? '') === lastErasure) return false;
      messages.delete(IDBKeyRange.bound([gid, 0], [gid, Infinity]));
      groups.put({ ...group, lastErasure, ranges: [] });
      return true;
    });
  }

  /**
   * Forget the messages after a position: no server has them. Own ones wait in the outbox again; the server stores each
   * once, whatever became of it.
   */
  async rewind(gid, after, uid) {
    return this.#transaction(['messages', 'groups', 'outbox'], 'readwrite', async (messages, groups, outbox) => {
      const later = IDBKeyRange.bound([gid, after], [gid, Infinity], true);
      const own = (await answer(messages.getAll(later))).filter(
        ({ sender_uid, client_msgid, content, isRich }) => sender_uid === uid && client_msgid && content && !isRich,
      );
      messages.delete(later);
      const sent = await answer(outbox.index('order').getAll());
      let order = sent.at(-1)?.order ?? 0;
      for (const item of sent)
        if (item.gid === gid && item.state === 'sent') outbox.put({ ...item, state: 'waiting' });
      for (const { client_msgid, content, at } of own) {
        const [time, to] = [timeOf(at).getTime(), peerOf(gid, uid) ?? undefined];
        const item = { client_msgid, gid, to, content, sender_uid: uid, time, tried: time, state: 'waiting' };
        outbox.put({ ...item, order: ++order });
      }
      await this.#change(groups, gid, ({ ranges, acked, from = acked }) => ({
        ranges: ranges.filter(([low]) => low <= after).map(([low, high]) => [low, Math.min(high, after)]),
        acked: Math.min(acked, after),
        from: Math.min(from, after),
      }));
    });
  }

  async #change(groups, gid, change) {
    const group = (await answer(groups.get(gid))) ?? { gid, ranges: [], acked: 0 };
    await answer(groups.put({ ...group, ...change(group) }));
  }

  /**
   * Keep messages, or parts of them (a tally), and note that nothing is missing between `low` and `high`.
   * A message of the outbox that is among them has arrived: it leaves the outbox.
   */
  async keep(gid, messages, uid, low = 1, high = 0) {
    return this.#transaction(['messages', 'groups', 'outbox'], 'readwrite', async (kept, groups, outbox) => {
      for (const message of messages) {
        await this.#merge(kept, { ...message, gid, at: message.at ?? pack(message.msgid) });
        if (message.recalls)
          await this.#merge(kept, { gid, at: pack(message.recalls), msgid: message.recalls, recalled: true });
        if (message.client_msgid && message.sender_uid === uid) outbox.delete(message.client_msgid);
      }
      if (low <= high) await this.#change(groups, gid, ({ ranges }) => ({ ranges: withRange(ranges, low, high) }));
    });
  }

  // An answer may be older than a notification that overtook it: a recall stays, and a tally never goes back.
  async #merge(kept, message) {
    const old = await answer(kept.get([message.gid, message.at]));
    const merged = { ...old, ...message };
    if (old?.read > (message.read ?? -1)) Object.assign(merged, { read: old.read, unread: old.unread });
    if (old?.delivered > (message.delivered ?? -1)) merged.delivered = old.delivered;
    if (old?.recalled || message.recalled) Object.assign(merged, { recalled: true, content: '' });
    if (merged.meta) merged.isRich = true;
    delete merged.meta; // this page shows none
    await answer(kept.put(merged));
  }

  async message(gid, at) {
    return this.#transaction(['messages'], 'readonly', (messages) => answer(messages.get([gid, at])));
  }

  /** The newest visible message that is here, for a list of groups. */
  async last(gid) {
    return this.#transaction(['messages'], 'readonly', async (messages) => {
      for await (const message of walk(messages, IDBKeyRange.bound([gid, 0], [gid, Infinity]), 'prev')) {
        if (isVisible(message)) return message;
      }
      return null;
    });
  }

  /** The newest position that is here. */
  async end(gid) {
    return this.#transaction(['groups'], 'readonly', async (groups) =>
      highest((await answer(groups.get(gid)))?.ranges ?? []),
    );
  }

  /** Messages before (or after) a position that follow on it without a hole, and how far they reach. */
  async before(gid, at, limit) {
    return this.#page(gid, limit, at - 1, ([low]) => ({ from: low, to: at - 1, direction: 'prev' }));
  }

  async after(gid, at, limit) {
    return this.#page(gid, limit, at + 1, ([, high]) => ({ from: at + 1, to: high, direction: 'next' }));
  }

  async #page(gid, limit, next, bounds) {
    return this.#transaction(['messages', 'groups'], 'readonly', async (messages, groups) => {
      const ranges = (await answer(groups.get(gid)))?.ranges ?? [];
      const range = rangeAt(ranges, next);
      if (!range) return { messages: [], reaches: null, end: highest(ranges) };
      const { from, to, direction } = bounds(range);
      const page = [];
      for await (const message of walk(messages, IDBKeyRange.bound([gid, from], [gid, to]), direction)) {
        if (isVisible(message)) page.push(message);
        if (page.length === limit) return { messages: page, reaches: message.at, end: highest(ranges) };
      }
      return { messages: page, reaches: direction === 'prev' ? from : to, end: highest(ranges) };
    });
  }

  /** How many messages of others come after a read position; null if that cannot be said: some are not here. */
  async unread(gid, acked, newest, uid) {
    return this.#transaction(['messages', 'groups'], 'readonly', async (messages, groups) => {
      const ranges = (await answer(groups.get(gid)))?.ranges ?? [];
      const end = Math.max(newest, highest(ranges));
      if (end <= acked) return 0;
      const range = rangeAt(ranges, acked + 1);
      if (!range || range[1] < end) return null;
      const later = await answer(messages.getAll(IDBKeyRange.bound([gid, acked + 1], [gid, end])));
      return later.filter((message) => isVisible(message) && !message.recalled && message.sender_uid !== uid).length;
    });
  }

  async outbox(gid) {
    const all = await this.#transaction(['outbox'], 'readonly', (outbox) => answer(outbox.index('order').getAll()));
    return gid === undefined ? all : all.filter((item) => item.gid === gid);
  }

  /** Put a message at the end of the outbox: it is on the disk when this returns. */
  async queue(item) {
    const add = async (outbox) => {
      const last = await answer(outbox.index('order').openCursor(null, 'prev'));
      const queued = { ...item, order: (last?.value.order ?? 0) + 1, state: 'waiting' };
      await answer(outbox.add(queued));
      return queued;
    };
    return this.#transaction(['outbox'], 'readwrite', add, { durability: 'strict' });
  }

  async changeOutgoing(client_msgid, fields) {
    return this.#transaction(['outbox'], 'readwrite', async (outbox) => {
      const item = await answer(outbox.get(client_msgid));
      if (item) await answer(outbox.put({ ...item, ...fields }));
    });
  }

  async discard(client_msgid) {
    return this.#transaction(['outbox'], 'readwrite', (outbox) => answer(outbox.delete(client_msgid)));
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// The client
// ---------------------------------------------------------------------------------------------------------------------

const CALL_TIMEOUT_MS = 15_000;
const SILENCE_MS = 25_000; // then the server is asked something, and has CALL_TIMEOUT_MS to answer
const ACK_FOLD_MS = 200;
const MOST = 100; // of what was missed the server hands over so many messages of a group, and names the gap before them
const PAGE = 40;
const [LOST, UNAUTHORIZED, TOO_MANY] = [1006, 4401, 4429]; // codes with which a socket closes
const INTERNAL_ERROR = -32603; // of JSON-RPC: the server is to blame, and may be mended
const REPEATED_MS = 20 * 3600_000; // the server knows a repeated client_msgid for 24 hours

/** A call that failed. `error` is a name of `imcore.errors`; `retry` says whether trying again can help. */
export class CallError extends Error {
  constructor(message, { error = 'Offline', retry = true } = {}) {
    super(message);
    this.error = error;
    this.retry = retry;
  }
}

/** What a token says. The server checks it; here it only tells whose database to open. */
export function claimsOf(token) {
  try {
    const bytes = Uint8Array.from(atob(token.split('.')[1].replace(/-/g, '+').replace(/_/g, '/')), (c) =>
      c.charCodeAt(0),
    );
    const claims = JSON.parse(new TextDecoder().decode(bytes));
    return typeof claims.sub === 'string' ? claims : null;
  } catch {
    return null;
  }
}

const byCodePoint = (one, other) => {
  const [a, b] = [[...one], [...other]];
  for (let i = 0; i < Math.min(a.length, b.length); i++)
    if (a[i] !== b[i]) return a[i].codePointAt(0) - b[i].codePointAt(0);
  return a.length - b.length;
};

/** The gid of the one-to-one chat of two users, as imcore/model/direct.py makes it. */
export async function directGid(one, other) {
  const [first, second] = [one, other].sort(byCodePoint);
  const pair = `${[...first].length}:${first}:${second}`;
  const bytes = new TextEncoder().encode(`dm:${pair}`);
  if (bytes.length <= 128) return `dm:${pair}`;
  const hash = new Uint8Array(await crypto.subtle.digest('SHA-256', bytes.subarray(3)));
  return `dm#${[...hash].map((byte) => byte.toString(16).padStart(2, '0')).join('')}`;
}

/** The other user of a one-to-one chat; null for groups (and for the few chats whose gid is a hash). */
export function peerOf(gid, uid) {
  const [, digits, rest] = /^dm:(\d{1,3}):(.*)$/s.exec(gid) ?? [];
  if (!digits) return null;
  const points = [...rest];
  const first = points.slice(0, Number(digits)).join('');
  const second = points.slice(Number(digits) + 1).join('');
  return first === uid ? second : second === uid ? first : null;
}

export const isDirect = (gid) => gid.startsWith('dm:') || gid.startsWith('dm#');

/** Whether a user was erased, or the other user of a one-to-one chat. imcore/model/erased.py makes such names. */
export const isErased = (uid) => /^erased-[0-9a-f]{16}$/.test(uid);
export const isErasedChat = (gid) => /^dm#[0-9a-f]{32}$/.test(gid);

/** Run `work` while no other tab of this user does. Browsers have no locks for plain http on another host. */
function alone(name, work) {
  return navigator.locks ? navigator.locks.request(name, work) : work();
}

/**
 * One user's live connection and local database. Open one in each tab; the tabs share the database.
 *
 * Events, each with a `detail`:
 *   state {state}             connecting, online, offline, unauthorized (a new token is needed: `setToken`)
 *   groups {}                 the list of groups has changed: unread counts, newest messages, members who came or left
 *   messages {gid}            messages were added after those that were the newest
 *   changed {gid, ats}        a tally has changed, or a message was recalled
 *   outbox {gid}              a message was queued, sent, refused or discarded
 *   expiring {seconds}        the token ends soon: `setToken`
 *   reset {}                  messages that were kept here are gone, but for the outbox: the server has other data now, or
 *                             has lost some
 */
export class ImClient extends EventTarget {
  #base;
  #token;
  #name;
  #local;
  #groups = new Map(); // gid -> {gid, acked, from, unread, last, left}; unread is what comes after `from`
  #connection = null;
  #attempts = 0;
  #timer = null;
  #nextId = 1;
  #inbox = []; // frames that are not handled yet, in order
  #pumping = false;
  #channel; // to the other tabs of this user
  #unsentAcks = new Set();
  #ackTimer = null;
  #unreadTimer = null;
  #acksSentAt = 0;
  #toAsk = new Set(); // of groups in which something was marked, or read in private: from where on is unread?
  #fromTimer = null;
  #isDraining = false;
  #drainAgain = false;
  #closing = new AbortController();

  /** Open the local database and begin to connect. `base` is where `im serve` is: beside this module. */
  static async open({ token, base = new URL('.', import.meta.url) }) {
    const client = new ImClient();
    client.uid = claimsOf(token)?.sub ?? '';
    client.state = 'connecting';
    client.refusal = ''; // why the server did not take the token
    client.#base = new URL(base, location.href);
    client.#token = token;
    client.#name = `imcore ${client.#base.pathname} ${client.uid}`;
    client.#local = await LocalDatabase.open(client.#name);
    await client.#loadGroups();
    client.#listen();
    client.#connect();
    return client;
  }

  #listen() {
    const { signal } = this.#closing;
    this.#channel = new BroadcastChannel(this.#name);
    this.#channel.onmessage = ({ data }) => this.#heardTab(data);
    addEventListener('online', () => this.reconnect(), { signal });
    addEventListener('offline', () => this.#check(3000), { signal });
    addEventListener('pagehide', () => this.#sendAcks(), { signal });
    document.addEventListener('visibilitychange', () => this.#visibilityChanged(), { signal });
    const heartbeat = setInterval(() => this.#heartbeat(), 5000);
    signal.addEventListener('abort', () => clearInterval(heartbeat));
  }

  close() {
    this.#closing.abort();
    clearTimeout(this.#timer);
    this.#sendAcks();
    this.#lost(this.#connection, LOST);
    clearTimeout(this.#timer);
    this.#channel.close();
    this.#local.close();
  }

  #tell(type, detail = {}) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  #setState(state) {
    if (this.state === state) return;
    this.state = state;
    this.#tell('state', { state });
  }

  // --- The connection ---

  #connect() {
    clearTimeout(this.#timer);
    if (this.#closing.signal.aborted || this.#connection || this.state === 'unauthorized') return;
    const url = new URL('ws', this.#base);
    url.protocol = url.protocol.replace('http', 'ws');
    const socket = new WebSocket(url);
    // By group, `live`: up to where the server has handed it over on this connection, or named what it left out;
    // `newest`: its newest message when this connection began. What is between them comes.
    const connection = {
      socket,
      calls: new Map(),
      live: new Map(),
      newest: new Map(),
      heardAt: Date.now(),
      id: null,
      asked: new Set(),
      isPart: false, // nodes of the server are silent: groups that it has not named may still be there
    };
    this.#connection = connection;
    socket.onopen = () => this.#introduce(connection);
    socket.onmessage = ({ data }) => this.#heard(connection, data);
    socket.onclose = ({ code }) => this.#lost(connection, code);
  }

  /** Connect at once, if not connected. */
  reconnect() {
    if (this.#connection) this.#check(5000);
    else this.#connect();
  }

  /** Go on with another token of the same user. */
  async setToken(token) {
    if (claimsOf(token)?.sub !== this.uid) throw new Error('this token is for somebody else');
    const before = this.#token;
    this.#token = token; // also for a connection that is lost meanwhile
    if (this.state === 'online') {
      try {
        await this.call('connect', { token }); // the session goes on
      } catch (error) {
        if (error.error === 'NotAuthenticated' || error.error === 'NotAllowed') {
          this.#token = before;
          throw error;
        }
      }
    }
    if (this.state === 'online') return;
    this.#lost(this.#connection, LOST);
    this.#setState('connecting');
    this.#connect();
  }

  async #introduce(connection) {
    const groups = (await this.#local.groups()).filter(({ ranges, left }) => !left && ranges.length);
    const after = Object.fromEntries(groups.map(({ gid, ranges }) => [gid, unpack(highest(ranges))]));
    if (connection !== this.#connection) return;
    connection.id = this.#nextId;
    const connected = this.#call(connection, 'connect', { token: this.#token, after, most: MOST });
    connected.then(
      () => (this.refusal = ''),
      ({ error, message }) => {
        this.refusal = error === 'NotAuthenticated' ? message : '';
        this.#lost(connection, this.refusal ? UNAUTHORIZED : LOST);
      },
    );
  }

  #lost(connection, code) {
    if (!connection || connection !== this.#connection) return;
    this.#connection = null;
    connection.socket.onopen = connection.socket.onmessage = connection.socket.onclose = null;
    connection.socket.close();
    for (const { reject, timer } of connection.calls.values()) {
      clearTimeout(timer);
      reject(new CallError('the connection was lost'));
    }
    if (code === UNAUTHORIZED) return this.#setState('unauthorized');
    this.#setState('offline');
    // Twice as long each time, and never all clients at the same moment. Where there are too many, there is no hurry.
    const longest = Math.min(15_000, (code === TOO_MANY ? 5000 : 300) * 2 ** this.#attempts++);
    this.#timer = setTimeout(() => this.#connect(), longest * (0.5 + Math.random() / 2));
  }

  // A dead network closes no socket. The browser answers the server's pings, unseen by this code; so ask a cheap
  // question after a silence. Its answer also brings the counts that other devices of this user have changed.
  #heartbeat() {
    const silence = Date.now() - (this.#connection?.heardAt ?? Infinity);
    // A browser says this a moment before the network is gone: the first question may still have been answered.
    if (!navigator.onLine && this.state === 'online') return this.#check(3000);
    if (silence > SILENCE_MS + CALL_TIMEOUT_MS) this.#lost(this.#connection, LOST);
    else if (silence > SILENCE_MS && this.state === 'online') this.#check(CALL_TIMEOUT_MS);
    else if (silence > CALL_TIMEOUT_MS && this.state !== 'online') this.#lost(this.#connection, LOST);
  }

  #check(timeoutMs) {
    const connection = this.#connection;
    if (!connection) return;
    const asked = Date.now();
    if (this.state === 'online') this.#askUnread();
    setTimeout(() => connection.heardAt < asked && this.#lost(connection, LOST), timeoutMs);
  }

  #visibilityChanged() {
    if (document.visibilityState === 'visible') this.reconnect();
    else this.#sendAcks();
  }

  /** Call a method of the server; see /openrpc.json. */
  call(method, params = {}) {
    if (this.state !== 'online') return Promise.reject(new CallError('offline'));
    return this.#call(this.#connection, method, params);
  }

  #call(connection, method, params) {
    const id = this.#nextId++;
    return new Promise((resolve, reject) => {
      const late = () => {
        connection.calls.delete(id);
        reject(new CallError('the server has not answered', { error: 'Timeout' }));
      };
      connection.calls.set(id, { resolve, reject, timer: setTimeout(late, CALL_TIMEOUT_MS) });
      connection.socket.send(JSON.stringify({ jsonrpc: '2.0', id, method, params }));
    });
  }

  /** Tell the server something that needs no answer. */
  #notify(method, params) {
    if (this.state === 'online') this.#connection.socket.send(JSON.stringify({ jsonrpc: '2.0', method, params }));
  }

  // --- What the server says ---

  #heard(connection, text) {
    connection.heardAt = Date.now();
    const frame = JSON.parse(text);
    if (frame.method) return this.#queueFrame(connection, frame);
    const call = connection.calls.get(frame.id);
    connection.calls.delete(frame.id);
    clearTimeout(call?.timer);
    if (frame.error) {
      const { code, message, data } = frame.error;
      call?.reject(new CallError(message, { error: `${code}`, retry: code === INTERNAL_ERROR, ...data }));
    } else {
      // Notifications follow this answer and build on it: it waits its turn in the same queue.
      if (frame.id === connection.id) this.#queueFrame(connection, { method: 'connected', params: frame.result });
      call?.resolve(frame.result);
    }
  }

  #queueFrame(connection, { method, params }) {
    this.#inbox.push({ connection, method, params });
    if (!this.#pumping) this.#pump();
  }

  async #pump() {
    this.#pumping = true;
    try {
      while (this.#inbox.length) {
        const { connection, method, params } = this.#inbox[0];
        let count = 1;
        // What waits of one group is kept in one transaction: a thousand missed messages are a few.
        while (method === 'message' && this.#continues(this.#inbox[count], connection, params.gid)) count++;
        const frames = this.#inbox.splice(0, count);
        if (method === 'message')
          await this.#addMessages(
            connection,
            params.gid,
            frames.map((frame) => frame.params),
          );
        else await this.#handle(connection, method, params);
      }
    } catch (error) {
      // Nothing was noted as received: the next connection begins before it.
      console.warn('imcore: a notification was not handled; connecting again', error);
      this.#inbox.length = 0;
      this.#lost(this.#connection, LOST);
    } finally {
      this.#pumping = false;
    }
  }

  #continues(frame, connection, gid) {
    return frame?.method === 'message' && frame.connection === connection && frame.params.gid === gid;
  }

  async #handle(connection, method, params) {
    if (method === 'connected') await this.#connected(connection, params);
    else if (method === 'gap')
      connection.live.set(params.gid, pack(params.to_msgid)); // left out: history has it
    else if (method === 'rewound') await this.#rewound(connection, params.gid, pack(params.after_msgid));
    else if (method === 'receipts') await this.#addReceipts(params.receipts);
    else if (method === 'position') this.#positionMoved(params.gid, pack(params.last_ack_msgid));
    else if (method === 'joined') await this.#joined(connection, params.gid);
    else if (method === 'left') await this.#left(params.gid);
    else if (method === 'expiring') this.#tell('expiring', { seconds: params.expires_in_s });
  }

  async #connected(connection, { groups, dataset, silent }) {
    if (dataset && (await this.#local.bind(dataset))) {
      await this.#loadGroups();
      this.#tell('reset');
    }
    const gids = new Set(groups.map(({ gid }) => gid));
    connection.isPart = silent.length > 0;
    if (!connection.isPart) for (const gid of this.#groups.keys()) if (!gids.has(gid)) await this.#left(gid);
    let isErased = false;
    const marked = []; // or read in private, on another device
    for (const { gid, last_ack_msgid, last_msgid, unread, after, last_erasure } of groups) {
      const group = this.#group(gid);
      if (last_erasure !== null && (await this.#local.followErasures(gid, last_erasure))) {
        group.last = null;
        isErased = true;
      }
      connection.live.set(gid, pack(after));
      connection.newest.set(gid, pack(last_msgid));
      if (group.left) await this.#local.note(gid, () => ({ left: false }));
      Object.assign(group, { left: false, unread });
      const acked = pack(last_ack_msgid);
      if (group.acked > acked) this.#unsentAcks.add(gid); // shown while offline
      if (group.acked < acked) await this.#local.note(gid, () => ({ acked }));
      if (group.from < acked && group.from === group.acked) group.from = acked;
      group.acked = Math.max(group.acked, acked);
      const here = await this.#local.unread(gid, group.from, pack(last_msgid), this.uid);
      if (here !== null && here !== unread && !this.#unsentAcks.has(gid)) marked.push(gid);
    }
    if (connection !== this.#connection) return;
    this.#attempts = 0;
    this.#setState('online');
    await this.#sendAcks();
    for (const gid of gids) if (!marked.includes(gid)) await this.#recount(gid, false);
    for (const gid of marked) this.#askFrom(gid); // now that this client is online
    this.#tell('groups');
    if (isErased) {
      this.#tell('reset');
      this.#channel.postMessage({ kind: 'erased' });
    }
    this.#drain();
    this.#fetchPreviews(connection);
  }

  async #addMessages(connection, gid, messages) {
    const low = (connection.live.get(gid) ?? pack(messages[0].msgid) - 1) + 1;
    const high = pack(messages.at(-1).msgid);
    await this.#local.keep(gid, messages, this.uid, low, high);
    connection.live.set(gid, high);
    // They are on this disk now, shown or not: they have arrived.
    if (connection === this.#connection) this.#notify('delivered', { gid, msgid: messages.at(-1).msgid });
    this.#group(gid).last = await this.#local.last(gid);
    await this.#recount(gid);
    const recalled = messages.filter(({ recalls }) => recalls).map(({ recalls }) => pack(recalls));
    if (recalled.length) this.#tell('changed', { gid, ats: recalled });
    if (messages.some(({ sender_uid }) => sender_uid === this.uid)) this.#tell('outbox', { gid });
    this.#tell('messages', { gid });
    this.#tell('groups');
  }

  async #addReceipts(receipts) {
    for (const [gid, tallies] of byGid(receipts)) await this.#addTallies(gid, tallies);
    this.#notify('confirm_receipts', { receipts });
  }

  async #addTallies(gid, tallies) {
    await this.#local.keep(
      gid,
      tallies.map(({ msgid, read, unread, delivered }) => ({ msgid, read, unread, delivered: delivered ?? read })),
      this.uid,
    );
    this.#tell('changed', { gid, ats: tallies.map(({ msgid }) => pack(msgid)) });
  }

  // A server was replaced while it was stopped, or by one that lagged: what it has handed over since is nowhere.
  async #rewound(connection, gid, after) {
    await this.#local.rewind(gid, after, this.uid);
    connection.live.set(gid, after);
    connection.newest.set(gid, after);
    const group = this.#group(gid);
    group.acked = Math.min(group.acked, after);
    group.from = Math.min(group.from, after);
    group.last = await this.#local.last(gid);
    await this.#recount(gid);
    this.#tell('reset');
    this.#tell('outbox', { gid });
    this.#tell('groups');
    this.#drain();
  }

  async #joined(connection, gid) {
    // Perhaps a node has come back, and this group was there before: connecting anew says where to go on.
    if (connection.isPart && !connection.live.has(gid)) return this.#lost(connection, LOST);
    // All that may be seen since the join comes now.
    if (!connection.live.has(gid)) connection.live.set(gid, 0);
    await this.#local.note(gid, () => ({ left: false }));
    this.#group(gid).left = false;
    this.#askPosition(gid); // also a chat that has another gid now: most of it may have been read before
    this.#tell('groups');
  }

  async #left(gid) {
    const group = this.#group(gid);
    if (group.left) return;
    Object.assign(group, { left: true, unread: 0 });
    await this.#local.forget(gid);
    this.#connection?.live.delete(gid);
    this.#connection?.newest.delete(gid);
    this.#tell('groups');
  }

  #heardTab({ kind, gid, at }) {
    if (kind === 'erased') this.#loadPreviews();
    if (kind === 'shown') this.#acked(gid, at);
    if (kind === 'queued' || kind === 'sent') this.#tell('outbox', { gid });
    if (kind === 'queued') this.#drain();
  }

  // --- Groups and counts ---

  async #loadGroups() {
    this.#groups.clear();
    for (const { gid, acked, from = acked, left } of await this.#local.groups()) {
      const group = { gid, acked, from, left: Boolean(left), unread: 0, last: await this.#local.last(gid) };
      this.#groups.set(gid, group);
      if (!left) group.unread = (await this.#local.unread(gid, from, 0, this.uid)) ?? 0;
    }
  }

  #group(gid) {
    if (!this.#groups.has(gid)) this.#groups.set(gid, { gid, acked: 0, from: 0, unread: 0, last: null, left: false });
    return this.#groups.get(gid);
  }

  /** The groups of the user, by latest activity: [{gid, unread, acked, from, last: message or null, left}]. */
  groups() {
    const latest = ({ last, acked }) => last?.at ?? acked;
    return [...this.#groups.values()]
      .filter(({ left }) => !left)
      .sort((one, other) => latest(other) - latest(one) || (one.gid < other.gid ? -1 : 1));
  }

  group(gid) {
    return this.#groups.get(gid) ?? null;
  }

  /** The newest message of a group, as far as the server has said. */
  #end(gid) {
    return Math.max(this.#connection?.live.get(gid) ?? 0, this.#connection?.newest.get(gid) ?? 0);
  }

  // A count is derived from a read position and from messages, never counted up and down: so it cannot drift. If some
  // of the messages are not here, the server counts.
  async #recount(gid, mayAsk = true) {
    const group = this.#group(gid);
    const unread = await this.#local.unread(gid, group.from, this.#end(gid), this.uid);
    if (unread !== null) group.unread = unread;
    else if (mayAsk) this.#unreadTimer ??= setTimeout(() => this.#askUnread(), 1500); // the server folds acks, too
  }

  async #askUnread() {
    clearTimeout(this.#unreadTimer);
    const wait = this.#untilCounted();
    this.#unreadTimer = wait ? setTimeout(() => this.#askUnread(), wait) : null; // this answer is not the last word
    const counts = await this.call('unread').catch(() => []);
    for (const { gid, unread } of counts) {
      const group = this.#groups.get(gid);
      if (!group || group.left) continue;
      const here = await this.#local.unread(gid, group.from, this.#end(gid), this.uid);
      group.unread = here ?? unread;
      if (here > unread) await this.#askPosition(gid);
    }
    this.#tell('groups');
  }

  /** Another device of this user has read some: ask how far. */
  async #askPosition(gid) {
    const [own] = await this.call('members', { gid, uids: [this.uid] }).catch(() => []);
    if (own) this.#acked(gid, pack(own.last_ack_msgid));
  }

  // The offset says it all, unless something was marked unread or read in private, here or on another device.
  async #positionMoved(gid, at) {
    if (at > this.#group(gid).acked) this.#acked(gid, at);
    else this.#askFrom(gid);
  }

  /** How many milliseconds until the server counts all that was shown here: it folds acks, and so does this tab. */
  #untilCounted() {
    if (this.state !== 'online') return 0; // nothing is asked, and the next connection compares anew
    const sentAt = this.#unsentAcks.size ? Date.now() + ACK_FOLD_MS : this.#acksSentAt;
    return Math.max(0, sentAt + 1500 - Date.now());
  }

  /** Ask the server from where on messages are unread; not while it does not count acks of this tab. */
  #askFrom(gid) {
    this.#toAsk.add(gid);
    this.#fromTimer ??= setTimeout(() => this.#askAllFrom(), this.#untilCounted());
  }

  async #askAllFrom() {
    const wait = this.#untilCounted();
    this.#fromTimer = wait ? setTimeout(() => this.#askAllFrom(), wait) : null;
    if (wait) return;
    const asked = new Map([...this.#toAsk].map((gid) => [gid, { ...this.#group(gid), end: this.#end(gid) }]));
    this.#toAsk.clear();
    const counts = await this.call('unread').catch(() => []);
    for (const { gid, unread } of counts.filter((each) => asked.has(each.gid))) {
      const page = unread ? await this.#history(gid, { first_unread: true, limit: 1 }).catch(() => null) : null;
      if (unread && !page?.messages.length) continue;
      const { acked, from, end } = asked.get(gid);
      const now = this.#group(gid);
      // The answer does not know what was shown meanwhile.
      if (now.acked !== acked || now.from !== from) this.#askFrom(gid);
      else await this.#setFrom(gid, unread ? pack(page.messages[0].msgid) - 1 : Math.max(acked, end));
    }
    this.#tell('groups');
  }

  async #setFrom(gid, from) {
    this.#group(gid).from = from;
    await this.#local.note(gid, () => ({ from }));
    await this.#recount(gid);
  }

  /** Mark a message and all later ones unread, for this user alone. What comes into view later removes the mark. */
  async markUnread(gid, msgid) {
    await this.#sendAcks();
    await this.call('mark_unread', { gid, msgid });
    await this.#setFrom(gid, pack(msgid) - 1);
    this.#tell('groups');
  }

  // A group that was read elsewhere has no message here, and none comes. One page shows what it is about.
  async #fetchPreviews(connection) {
    for (const { gid, last } of this.groups().slice(0, 30)) {
      if (last || connection !== this.#connection || connection.live.get(gid) < connection.newest.get(gid)) continue;
      const { messages } = await this.messages(gid, { limit: 20 }).catch(() => ({ messages: [] }));
      if (messages.length) this.#tell('groups');
    }
  }

  /** Another tab has forgotten messages. */
  async #loadPreviews() {
    for (const [gid, group] of this.#groups) group.last = await this.#local.last(gid);
    this.#tell('reset');
    this.#tell('groups');
    if (this.#connection) this.#fetchPreviews(this.#connection);
  }

  // --- Reading ---

  /**
   * Return a page of visible messages, oldest first, from the local database or else from the server's history:
   * the newest, those before or after a position, or those around the first unread one.
   *
   * {messages, low, high, older, newer, firstUnread, missing}: `low` and `high` are the positions to go on from,
   * `older` and `newer` whether there is more. `missing`: there is more, but only the server has it, and it is away.
   * With `isLocal` the server is not asked for those after a position.
   */
  async messages(gid, { before, after, around, limit = PAGE, isLocal = false } = {}) {
    if (before !== undefined) return this.#older(gid, before, limit);
    if (after !== undefined) return this.#newer(gid, after, limit, isLocal);
    const page = around === 'unread' && this.group(gid)?.unread ? await this.#unreadPage(gid, limit) : null;
    const shown = page ?? (await this.#newest(gid, limit));
    this.refreshTallies(gid, shown.messages);
    return shown;
  }

  async #older(gid, before, limit) {
    for (;;) {
      const page = await this.#local.before(gid, before, limit);
      const low = page.reaches ?? before;
      const found = { messages: page.messages.reverse(), low, high: before - 1, older: low > 1, newer: true };
      if (page.messages.length || low <= 1) {
        this.refreshTallies(gid, found.messages);
        return found;
      }
      const history = await this.#history(gid, { before: unpack(low), limit });
      if (!history) return { ...found, missing: true };
      const first = history.older && history.messages.length ? pack(history.messages[0].msgid) : 1;
      await this.#local.keep(gid, history.messages, this.uid, first, low - 1);
    }
  }

  async #newer(gid, after, limit, isLocal = false) {
    for (;;) {
      const page = await this.#local.after(gid, after, limit);
      const end = Math.max(page.end, this.#end(gid));
      const high = page.reaches ?? after;
      const found = { messages: page.messages, low: after + 1, high, older: true, newer: high < end };
      if (page.messages.length || high >= end || isLocal) {
        this.refreshTallies(gid, found.messages);
        return found;
      }
      const history = await this.#history(gid, { after: unpack(Math.max(high, 1)), limit });
      if (!history) return { ...found, missing: true };
      const last = history.messages.length ? pack(history.messages.at(-1).msgid) : 0;
      const reached = history.newer && last ? last : Math.max(last, end);
      await this.#local.keep(gid, history.messages, this.uid, high + 1, reached);
    }
  }

  async #newest(gid, limit) {
    const newest = this.#end(gid);
    let end = await this.#local.end(gid);
    if (!end || end < newest) {
      const history = await this.#history(gid, { limit });
      if (!history && !end) return { messages: [], low: 1, high: 0, older: true, newer: false, missing: true };
      if (history) {
        const ats = history.messages.map(({ msgid }) => pack(msgid));
        const low = history.older && ats.length ? ats[0] : 1;
        end = Math.max(newest, ats.at(-1) ?? 0);
        await this.#local.keep(gid, history.messages, this.uid, low, end);
        const group = this.#groups.get(gid);
        if (group) group.last ??= await this.#local.last(gid);
      }
    }
    return { ...(await this.#older(gid, end + 1, limit)), newer: false };
  }

  async #unreadPage(gid, limit) {
    const { from: acked } = this.#group(gid);
    let after = await this.#local.after(gid, acked, limit);
    if (!after.messages.some((message) => this.#isUnread(message, acked))) {
      const history = await this.#history(gid, { first_unread: true, limit });
      if (!history?.messages.length) return null;
      const ats = history.messages.map(({ msgid }) => pack(msgid));
      const end = Math.max(ats.at(-1), history.newer ? 0 : this.#end(gid));
      await this.#local.keep(gid, history.messages, this.uid, history.older ? ats[0] : 1, end);
      after = await this.#local.after(gid, Math.max(acked, ats[0] - 1), limit);
    }
    const first = after.messages.find((message) => this.#isUnread(message, acked));
    if (!first) return null;
    const newer = await this.#newer(gid, first.at - 1, limit);
    const older = await this.#local.before(gid, first.at, limit / 2);
    const low = older.reaches ?? first.at;
    return {
      ...newer,
      messages: [...older.messages.reverse(), ...newer.messages],
      low,
      older: low > 1,
      firstUnread: first.at,
    };
  }

  #isUnread(message, acked) {
    return message.at > acked && message.sender_uid !== this.uid && !message.recalled;
  }

  /** A page of the server's history; null while the server cannot be asked. */
  async #history(gid, params) {
    try {
      return await this.#askHistory(gid, params);
    } catch (error) {
      if (error.retry) return null;
      throw error;
    }
  }

  async #askHistory(gid, params) {
    try {
      return await this.call('history', { gid, ...params });
    } catch (error) {
      // A one-to-one chat begins with its first message. Of a group that one has left there is what was kept.
      if (error.error === 'UnknownGroup' || error.error === 'NotMember')
        return { messages: [], older: false, newer: false };
      throw error;
    }
  }

  message(gid, at) {
    return this.#local.message(gid, at);
  }

  // Receipts name what has changed since a device of the user confirmed it: perhaps another device. So ask once on each
  // connection how own messages are read; from then on receipts say it.
  async refreshTallies(gid, messages) {
    const connection = this.#connection;
    if (this.state !== 'online') return;
    const isOpen = ({ at, sender_uid, unread, recalled }) =>
      sender_uid === this.uid && unread !== 0 && !recalled && !connection.asked.has(at);
    const open = messages.filter(isOpen);
    if (!open.length) return;
    for (const { at } of open) connection.asked.add(at);
    const tallies = await this.call('tallies', { gid, msgids: open.map(({ msgid }) => msgid) }).catch(() => []);
    if (tallies.length) await this.#addTallies(gid, tallies);
  }

  /** A person has seen this message, and so all before it. The ack goes out a little later, with others. */
  shown(gid, at) {
    if (this.#acked(gid, at)) {
      this.#unsentAcks.add(gid);
      this.#channel.postMessage({ kind: 'shown', gid, at });
      this.#ackTimer ??= setTimeout(() => this.#sendAcks(), ACK_FOLD_MS);
    }
  }

  #acked(gid, at) {
    const group = this.#group(gid);
    if (at <= group.acked && at <= group.from) return false;
    group.acked = Math.max(group.acked, at);
    if (at > group.from) group.from = group.acked; // it removes a mark, too
    const { from } = group;
    this.#local.note(gid, ({ acked }) => ({ acked: Math.max(acked, at), from }));
    this.#recount(gid).then(() => this.#tell('groups'));
    return true;
  }

  // An ack says "up to here": it may be sent twice. One that cannot be sent now is noted in the database, and goes out
  // after the next connect.
  async #sendAcks() {
    clearTimeout(this.#ackTimer);
    this.#ackTimer = null;
    if (this.state !== 'online') return;
    if (this.#unsentAcks.size) this.#acksSentAt = Date.now();
    for (const gid of this.#unsentAcks) this.#notify('ack', { gid, msgid: unpack(this.#group(gid).acked) });
    this.#unsentAcks.clear();
  }

  // --- Writing ---

  /** Queue a message to a group, or to a user; it is sent once, in order. Resolves as soon as it cannot be lost. */
  async send({ gid, to, content }) {
    const client_msgid = Array.from(crypto.getRandomValues(new Uint32Array(4)), (n) => n.toString(36)).join('');
    gid ??= await directGid(this.uid, to);
    const item = await this.#local.queue({
      client_msgid,
      gid,
      to,
      content,
      sender_uid: this.uid,
      time: Date.now(),
    });
    this.#outboxChanged(gid);
    return item;
  }

  /** What a group's outbox holds, in order; `state` is waiting, sent (and not handed back yet) or refused. */
  outbox(gid) {
    return this.#local.outbox(gid);
  }

  async retry({ gid, client_msgid }) {
    await this.#local.changeOutgoing(client_msgid, { state: 'waiting' });
    this.#outboxChanged(gid);
  }

  async discard({ gid, client_msgid }) {
    await this.#local.discard(client_msgid);
    this.#outboxChanged(gid);
  }

  #outboxChanged(gid) {
    this.#tell('outbox', { gid });
    this.#channel.postMessage({ kind: 'queued', gid });
    this.#drain();
  }

  async #drain() {
    this.#drainAgain = true;
    if (this.#isDraining) return;
    this.#isDraining = true;
    try {
      while (this.#drainAgain && this.state === 'online') {
        this.#drainAgain = false;
        // Of several tabs one sends: else each would send all of it, which does no harm and no good.
        await alone(`${this.#name} outbox`, () => this.#sendWaiting());
      }
    } finally {
      this.#isDraining = false;
    }
  }

  async #sendWaiting() {
    for (let failures = 0; this.state === 'online';) {
      const item = (await this.#local.outbox()).find(({ state }) => state === 'waiting');
      if (!item) return;
      try {
        await this.#sendOne(item);
        failures = 0;
      } catch (error) {
        if (!error.retry)
          await this.#local.changeOutgoing(item.client_msgid, { state: 'refused', reason: error.message });
        else if (this.state === 'online')
          await new Promise((resolve) => setTimeout(resolve, Math.min(8000, 500 * 2 ** failures++)));
      }
      this.#tell('outbox', { gid: item.gid });
      this.#channel.postMessage({ kind: 'sent', gid: item.gid });
    }
  }

  async #sendOne(item) {
    const { client_msgid, gid, to, content, tried } = item;
    if (tried && Date.now() - tried > REPEATED_MS && (await this.#hasArrived(item))) return;
    await this.#local.changeOutgoing(client_msgid, { tried: tried ?? Date.now() });
    const { recipients, ...message } =
      to === undefined
        ? await this.call('send', { gid, content, client_msgid })
        : await this.call('send_direct', { to, content, client_msgid });
    // It leaves the outbox when it is handed back in its place among the others (`keep`), perhaps it was already.
    const kept = await this.#local.message(message.gid, pack(message.msgid));
    if (recipients !== undefined)
      await this.#addTallies(message.gid, [{ msgid: message.msgid, read: 0, unread: recipients }]);
    if (kept?.sender_uid) await this.#local.discard(client_msgid);
    else
      await this.#local.changeOutgoing(client_msgid, {
        state: 'sent',
        gid: message.gid,
        msgid: message.msgid,
        recipients,
      });
  }

  // Sent long ago without an answer: the server may have it and may have forgotten its client_msgid. Then history has
  // it.
  async #hasArrived(item) {
    for (let before, older = true; older;) {
      const page = await this.#askHistory(item.gid, { before, limit: 100 });
      await this.#local.keep(item.gid, page.messages, this.uid);
      const first = page.messages[0];
      older = page.older && first !== undefined && timeOf(pack(first.msgid)) > item.tried - 600_000;
      before = first?.msgid;
      if (page.messages.some(({ client_msgid }) => client_msgid === item.client_msgid)) return true;
    }
    return false;
  }

  /** Withdraw an own message. */
  async recall(gid, msgid) {
    await this.call('recall', { gid, msgid });
    await this.#local.keep(gid, [{ msgid, recalled: true }], this.uid);
    this.#tell('changed', { gid, ats: [pack(msgid)] });
  }
}

function byGid(items) {
  const groups = new Map();
  for (const item of items) groups.set(item.gid, [...(groups.get(item.gid) ?? []), item]);
  return groups;
}

// ---------------------------------------------------------------------------------------------------------------------
// The page
// ---------------------------------------------------------------------------------------------------------------------

const STRINGS = {
  en: {
    conversations: 'Conversations',
    new_chat: 'New chat',
    no_groups: 'No conversations yet. Write to somebody, or wait until you are added to a group.',
    nothing_title: 'Choose a conversation',
    nothing_text: 'The ticks on your messages say who has read them: really seen on a screen, not only received.',
    demo: 'This is a demo with two users. Open the other one in a tab of its own, side by side, and watch the ticks.',
    demo_me: 'you, in this tab',
    demo_open: (uid) => `Open as ${uid}`,
    back: 'Back to the conversations',
    close: 'Close',
    message: 'Message',
    send: 'Send',
    gone: 'You are no longer in this group.',
    new_messages: 'New messages',
    new_count: (n) => (n === 1 ? '1 new message' : `${n} new messages`),
    to_newest: 'To the newest message',
    beginning: 'This is the beginning of the conversation.',
    empty: 'No messages yet. Write the first one.',
    loading: 'Loading…',
    missing: 'There are more messages here. They come when you are online again.',
    recalled: 'Message recalled',
    erased: 'Message deleted',
    erased_user: 'Deleted user',
    you: 'You',
    yourself: 'Notes to yourself',
    refused: (why) => `Not sent: ${why}`,
    retry: 'Try again',
    discard: 'Delete',
    tick_waiting: 'Waiting to be sent',
    tick_sent: 'Sent',
    tick_delivered: (arrived, all) => (all === 1 ? 'Delivered' : `Delivered to ${arrived} of ${all}`),
    tick_some: (read, all) => `Read by ${read} of ${all}`,
    tick_all: (all) => (all === 1 ? 'Read' : `Read by all ${all}`),
    info: 'Who has read it',
    read_by: (n) => `Read by ${n}`,
    unread_by: (n) => `Not yet ${n}`,
    arrived_at: (n) => `Delivered to ${n}, not read`,
    mark: 'Mark unread from here',
    and_more: (n) => `and ${n} more`,
    failed: (why) => `That did not work: ${why}`,
    recall: 'Recall this message',
    recall_sure: 'Recall it for everybody?',
    with_whom: 'User to write to',
    start: 'Start',
    login: 'Sign in',
    login_needed:
      'This page needs a token. The command “im token UID” prints one; “im up --web” prints a link that has one.',
    login_ended: 'Your session has ended. Nothing is lost: go on with a new token.',
    login_refused: (why) =>
      `The server did not take your token: ${why}. Nothing is lost: go on with another one. “im token UID” prints one.`,
    token: 'Token',
    token_bad: 'This is not a token.',
    go_on: 'Continue',
    state_online: 'Online',
    state_connecting: 'Connecting…',
    state_offline: 'Offline',
    state_unauthorized: 'Signed out',
    banner_offline: 'Offline: your messages wait, and go out by themselves.',
    banner_unauthorized: 'You are signed out: what you write waits.',
    banner_expiring: 'Your session ends soon.',
    banner_failed: (why) => `This browser cannot keep messages for this page: ${why}`,
    online: 'online',
    offline: 'not online',
    online_count: (n, all) => `${n} of ${all} online`,
    member_count: (n) => `${n} members`,
    heard: (who, text) => `${who}: ${text}`,
  },
  zh: {
    conversations: '会话',
    new_chat: '发起聊天',
    no_groups: '还没有会话。给别人发条消息，或等待被加入群组。',
    nothing_title: '请选择一个会话',
    nothing_text: '消息上的对勾表示谁已读：真正在屏幕上看到，而不只是收到。',
    demo: '这是有两位用户的演示。请在另一个标签页打开另一位，并排查看对勾的变化。',
    demo_me: '你，本标签页',
    demo_open: (uid) => `以 ${uid} 打开`,
    back: '返回会话列表',
    close: '关闭',
    message: '消息',
    send: '发送',
    gone: '你已不在这个群组中。',
    new_messages: '新消息',
    new_count: (n) => `${n} 条新消息`,
    to_newest: '跳到最新消息',
    beginning: '会话从这里开始。',
    empty: '还没有消息，来写第一条吧。',
    loading: '加载中…',
    missing: '这里还有消息，恢复连接后会显示。',
    recalled: '消息已撤回',
    erased: '消息已删除',
    erased_user: '已注销用户',
    you: '你',
    yourself: '给自己的笔记',
    refused: (why) => `未发送：${why}`,
    retry: '重试',
    discard: '删除',
    tick_waiting: '等待发送',
    tick_sent: '已发送',
    tick_delivered: (arrived, all) => (all === 1 ? '已送达' : `已送达 ${all} 人中的 ${arrived} 人`),
    tick_some: (read, all) => `${all} 人中 ${read} 人已读`,
    tick_all: (all) => (all === 1 ? '已读' : `全部 ${all} 人已读`),
    info: '谁已读',
    read_by: (n) => `${n} 人已读`,
    unread_by: (n) => `${n} 人未读`,
    arrived_at: (n) => `已送达 ${n} 人，未读`,
    mark: '从这里标为未读',
    and_more: (n) => `还有 ${n} 人`,
    failed: (why) => `操作失败：${why}`,
    recall: '撤回这条消息',
    recall_sure: '确定对所有人撤回？',
    with_whom: '对方的用户名',
    start: '开始',
    login: '登录',
    login_needed: '此页面需要令牌。命令“im token UID”会输出令牌；“im up --web”会输出带令牌的链接。',
    login_ended: '登录已过期。数据没有丢失：请用新令牌继续。',
    login_refused: (why) => `服务器未接受此令牌：${why}。数据没有丢失：请用其他令牌继续。“im token UID”会输出令牌。`,
    token: '令牌',
    token_bad: '这不是有效的令牌。',
    go_on: '继续',
    state_online: '在线',
    state_connecting: '连接中…',
    state_offline: '离线',
    state_unauthorized: '未登录',
    banner_offline: '离线：消息会等待，恢复连接后自动发出。',
    banner_unauthorized: '未登录：消息会等待。',
    banner_expiring: '登录即将过期。',
    banner_failed: (why) => `此浏览器无法为本页保存消息：${why}`,
    online: '在线',
    offline: '不在线',
    online_count: (n, all) => `${all} 人中 ${n} 人在线`,
    member_count: (n) => `${n} 位成员`,
    heard: (who, text) => `${who}：${text}`,
  },
};

const LANGUAGE = navigator.language.toLowerCase().startsWith('zh') ? 'zh' : 'en';
const T = STRINGS[LANGUAGE];
const LOCALE = navigator.language.toLowerCase().startsWith(LANGUAGE) ? navigator.language : LANGUAGE;
const CLOCK = new Intl.DateTimeFormat(LOCALE, { hour: '2-digit', minute: '2-digit' });
const DAY = new Intl.DateTimeFormat(LOCALE, { weekday: 'long', day: 'numeric', month: 'long', year: 'numeric' });
const SHORT_DAY = new Intl.DateTimeFormat(LOCALE, { day: 'numeric', month: 'short' });
const NEAR_DAY = new Intl.RelativeTimeFormat(LOCALE, { numeric: 'auto' });
const DAY_MS = 24 * 3600_000;
const MOST_ROWS = 1000;
const MOST_NAMES = 300;
const MOST_LISTED = 1000; // of larger groups the server does not say who is online
const PRESENCE_MS = 20_000;

const $ = (id) => document.getElementById(id);
const clone = (id) => $(id).content.firstElementChild.cloneNode(true);
const isSeen = () => document.visibilityState === 'visible';
const isNarrow = () => matchMedia('(max-width: 719px)').matches;

/** Put the strings of the table into static elements. */
function translate(root) {
  for (const element of root.querySelectorAll('[data-text]')) element.textContent = T[element.dataset.text];
  for (const element of root.querySelectorAll('[data-label]'))
    element.setAttribute('aria-label', T[element.dataset.label]);
  for (const element of root.querySelectorAll('[data-hint]'))
    element.setAttribute('placeholder', T[element.dataset.hint]);
  for (const template of root.querySelectorAll('template')) translate(template.content);
}

function startOfDay(date) {
  return new Date(date.getFullYear(), date.getMonth(), date.getDate()).getTime();
}

function dayOf(date) {
  const days = Math.round((startOfDay(date) - startOfDay(new Date())) / DAY_MS);
  const text = days > -2 ? NEAR_DAY.format(days, 'day') : DAY.format(date);
  return text.charAt(0).toLocaleUpperCase(LOCALE) + text.slice(1);
}

/** Letter and colour of a user or group. */
function paint(avatar, name, isPerson) {
  avatar.textContent = [...name.replace(/^[^\p{L}\p{N}]+(?=.)/u, '')][0]?.toLocaleUpperCase() ?? '';
  avatar.dataset.tint = tintOf(name);
  avatar.classList.toggle('person', isPerson);
}

function tintOf(name) {
  return [...name].reduce((hash, letter) => (hash * 31 + letter.codePointAt(0)) % 8191, 7) % 8;
}

/** waiting, sent, delivered, some or all; and how many have read a message, of how many. */
/** What a person reads of a message. */
function textOf({ sender_uid, content, recalled }) {
  if (recalled) return T.recalled;
  return isErased(sender_uid) ? T.erased : content;
}

const nameOf = (uid) => (isErased(uid) ? T.erased_user : uid);

function tickOf({ state, read, unread, delivered }) {
  if (state === 'waiting') return { tick: 'waiting', label: T.tick_waiting };
  const all = (read ?? 0) + (unread ?? 0);
  if (!all) return { tick: 'sent', label: T.tick_sent };
  const arrived = Math.max(delivered ?? 0, read);
  const tick = unread === 0 ? 'all' : read ? 'some' : arrived === all ? 'delivered' : 'sent';
  const sent = arrived ? T.tick_delivered(arrived, all) : T.tick_sent;
  return {
    tick,
    count: `${read}/${all}`,
    label: tick === 'all' ? T.tick_all(all) : `${sent}. ${T.tick_some(read, all)}`,
    all,
  };
}

/**
 * The conversation that is open: a window of messages that follow one another without a hole. It grows at both ends
 * while one scrolls, and says to the client which messages were seen.
 */
class Timeline {
  #client;
  #log = $('log');
  #rows = new Map(); // at -> row, in order; row.message is what it shows
  #turn = 0;
  #work = Promise.resolve();
  #low = 0;
  #high = 0;
  #older = false;
  #newer = false;
  #missing = { older: false, newer: false }; // what is there, and only the server has it, which is away
  #loading = new Set(); // ends that grow
  #divider = null; // the row with the line "new messages"
  #sticks = true; // at the end: the window moves on as messages come
  #inView = new Set();

  constructor(client) {
    this.gid = null;
    this.#client = client;
    this.#log.addEventListener('scroll', () => this.#scrolled(), { passive: true });
    new ResizeObserver(() => this.#sticks && this.#toEnd()).observe(this.#log);
    document.addEventListener('visibilitychange', () => this.#visibilityChanged());
    const margin = { root: this.#log, rootMargin: '500px 0px' };
    this.ends = new IntersectionObserver(
      (entries) => entries.forEach((entry) => entry.isIntersecting && this.#extend(entry.target)),
      margin,
    );
    this.seen = new IntersectionObserver((entries) => this.#looked(entries), {
      root: this.#log,
      threshold: [0, 0.25, 0.5, 0.75, 1],
    });
  }

  /** Show a conversation: at the first unread message, else at the end. */
  open(gid, around = 'unread') {
    this.#turn++;
    this.gid = gid;
    this.#clear();
    $('older').textContent = gid === null ? '' : T.loading;
    if (gid !== null) this.#do(() => this.#fill(around));
  }

  #clear() {
    this.ends.disconnect();
    this.seen.disconnect();
    this.#inView.clear();
    this.#rows.clear();
    this.#loading.clear();
    this.#divider = null;
    $('rows').replaceChildren();
    $('waiting').replaceChildren();
    $('newer').textContent = '';
  }

  /** Do one thing after the other; what belongs to a conversation that is not open any more is not done. */
  #do(work) {
    const turn = this.#turn;
    const isOpen = () => turn === this.#turn;
    this.#work = this.#work
      .then(() => isOpen() && work(isOpen))
      .catch((error) => {
        if (isOpen()) $('older').textContent = T.failed(error.message);
      });
    return this.#work;
  }

  async #fill(around) {
    const { gid } = this;
    const turn = this.#turn;
    const page = await this.#client.messages(gid, { around });
    const waiting = await this.#client.outbox(gid);
    if (turn !== this.#turn) return;
    [this.#low, this.#high, this.#older, this.#newer] = [page.low, page.high, page.older, page.newer];
    this.#missing = { older: page.missing, newer: page.missing };
    this.#insert(page.messages, null);
    this.#showWaiting(waiting);
    if (page.firstUnread) this.#divide(this.#rows.get(page.firstUnread));
    this.#toDivider();
    if (!page.missing) this.#observeEnds();
  }

  /** Bring what is shown up to date with the local database: messages that have come, and the outbox. */
  update() {
    return this.#do(async (isOpen) => {
      // From the local database only: what one has just written does not wait for a slow server.
      const page = this.#newer ? null : await this.#client.messages(this.gid, { after: this.#high, isLocal: true });
      const waiting = await this.#client.outbox(this.gid);
      if (!isOpen()) return;
      if (page) this.#append(page);
      this.#showWaiting(waiting);
      if (page?.newer) this.#observeEnds();
      if (this.#sticks && isSeen() && !page?.messages.length) this.#toEnd();
    });
  }

  /** Some messages have other ticks now, or were recalled. */
  change(ats) {
    return this.#do(async (isOpen) => {
      for (const at of ats.filter((each) => this.#rows.has(each))) {
        const message = await this.#client.message(this.gid, at);
        if (isOpen() && message) this.#show(this.#rows.get(at), message);
      }
    });
  }

  /** The connection is back: what could not be loaded can be now, and ticks may have changed meanwhile. */
  resume() {
    if (this.gid === null) return;
    if (!this.#rows.size) return this.open(this.gid);
    this.update();
    this.#observeEnds();
    this.#client.refreshTallies(this.gid, [...this.#rows.values()].map(({ message }) => message).slice(-200));
  }

  toNewest() {
    if (this.#newer) return this.open(this.gid, 'newest');
    return this.#toEnd();
  }

  rows() {
    return [...$('rows').children, ...$('waiting').children];
  }

  // --- Growing ---

  #observeEnds() {
    this.ends.disconnect(); // observed anew, an element that is still near is reported again
    this.ends.observe($('older'));
    this.ends.observe($('newer'));
  }

  async #extend(end) {
    const isOlder = end === $('older');
    if (!(isOlder ? this.#older : this.#newer) || this.#loading.has(end)) return;
    this.#loading.add(end);
    const turn = this.#turn;
    const request = this.#client.messages(this.gid, isOlder ? { before: this.#low } : { after: this.#high });
    await request.catch(() => {}); // and meanwhile messages come, and are shown
    this.#do(async () => {
      const page = await request.finally(() => turn === this.#turn && this.#loading.delete(end));
      if (turn !== this.#turn) return;
      // The window may have changed at this end since: then it is asked for again.
      if (isOlder && page.high === this.#low - 1) this.#prepend(page);
      if (!isOlder && page.low === this.#high + 1) this.#append(page);
      if (!page.missing) this.#observeEnds();
    });
  }

  #prepend(page) {
    // What one looks at stays where it is, while rows come above it.
    const anchor = $('rows').firstElementChild;
    const top = anchor?.getBoundingClientRect().top;
    [this.#low, this.#older, this.#missing.older] = [page.low, page.older, page.missing];
    this.#insert(page.messages, anchor);
    this.#showEnds();
    if (anchor) {
      this.#arrange(anchor);
      this.#log.scrollTop += anchor.getBoundingClientRect().top - top;
    }
    this.#drop([...this.#rows.keys()].slice(MOST_ROWS), true);
  }

  #append(page) {
    const follows = this.#sticks && isSeen();
    [this.#high, this.#newer, this.#missing.newer] = [page.high, page.newer, page.missing];
    const added = this.#insert(page.messages, null);
    const fresh = added.find(({ message }) => message.sender_uid !== this.#client.uid);
    if (fresh && !follows && !this.#divider?.isConnected) this.#divide(fresh);
    if (added.length && follows) this.#toRow(added[0], 60);
    this.#showEnds();
    if (added.length && this.#sticks) this.#drop([...this.#rows.keys()].slice(0, -MOST_ROWS), false);
  }

  /** Take rows away at the end that is far from where one looks; they come again when one scrolls there. */
  #drop(ats, isEnd) {
    for (const at of ats) {
      this.#rows.get(at).remove();
      this.#rows.delete(at);
    }
    if (!ats.length) return;
    if (isEnd) [this.#high, this.#newer] = [ats[0] - 1, true];
    else [this.#low, this.#older] = [ats.at(-1) + 1, true];
  }

  #insert(messages, before) {
    const added = messages
      .filter(({ at }) => !this.#rows.has(at))
      .map((message) => this.#show(clone('message'), message));
    const fragment = document.createDocumentFragment();
    fragment.append(...added);
    $('rows').insertBefore(fragment, before);
    const entries = added.map((row) => [row.message.at, row]);
    this.#rows = new Map(before ? [...entries, ...this.#rows] : [...this.#rows, ...entries]);
    for (const row of added) {
      this.#arrange(row);
      if (row.message.sender_uid !== this.#client.uid && row.message.at > this.#from()) this.seen.observe(row);
    }
    return added;
  }

  #from() {
    return this.#client.group(this.gid)?.from ?? 0;
  }

  // --- One message ---

  #show(row, message) {
    row.message = message;
    const isOwn = message.sender_uid === this.#client.uid;
    const isStored = message.at !== undefined;
    row.classList.toggle('own', isOwn);
    row.classList.toggle('recalled', Boolean(message.recalled) || isErased(message.sender_uid));
    row.classList.toggle('refused', message.state === 'refused');
    if (message.msgid) row.dataset.msgid = message.msgid;
    // Texts are data, never markup.
    row.querySelector('.text').textContent = textOf(message);
    const date = isStored ? timeOf(message.at) : new Date(message.time);
    row.querySelector('.foot time').textContent = CLOCK.format(date);
    row.querySelector('.foot time').dateTime = date.toISOString();
    this.#showTick(row, message, isOwn && !message.recalled && message.state !== 'refused');
    row.querySelector('.mark').hidden = isOwn || Boolean(message.recalled) || !isStored;
    row.querySelector('.refusal').hidden = message.state !== 'refused';
    if (message.state === 'refused') row.querySelector('.why').textContent = T.refused(message.reason);
    return row;
  }

  #showTick(row, message, isShown) {
    const button = row.querySelector('.tick');
    button.hidden = !isShown;
    const { tick, count, label, all } = tickOf(message);
    button.dataset.tick = tick;
    button.disabled = message.at === undefined;
    button.setAttribute('aria-label', label);
    button.title = label;
    button.querySelector('.count').textContent = count && (all > 1 || !isDirect(this.gid)) ? count : '';
    const icon = { some: 'read', all: 'read' }[tick] ?? tick;
    button.querySelector('use').setAttribute('href', `#icon-${icon}`);
  }

  /** Day, and whether the row begins what one person says in a row. */
  #arrange(row) {
    const before = row.previousElementSibling?.message;
    const { message } = row;
    const isNewDay = !before || startOfDay(timeOf(before.at)) !== startOfDay(timeOf(message.at));
    const isFirst = isNewDay || before.sender_uid !== message.sender_uid || message.at - before.at > 8192 * 600_000;
    row.classList.toggle('first', isFirst);
    const day = row.querySelector('.day');
    day.hidden = !isNewDay;
    if (isNewDay) day.textContent = dayOf(timeOf(message.at));
    const sender = row.querySelector('.sender');
    sender.hidden = !isFirst || message.sender_uid === this.#client.uid || isDirect(this.gid);
    sender.textContent = nameOf(message.sender_uid);
    sender.dataset.tint = tintOf(message.sender_uid);
  }

  #showWaiting(items) {
    const arrived = new Set([...this.#rows.values()].map(({ message }) => message.client_msgid));
    const rows = items.filter(({ client_msgid }) => !arrived.has(client_msgid)).map((item) => this.#waitingRow(item));
    $('waiting').replaceChildren(...rows);
    this.#showEnds();
  }

  #waitingRow(item) {
    const tally = item.recipients === undefined ? {} : { read: 0, unread: item.recipients };
    const row = this.#show(clone('message'), { ...item, ...tally, recalled: false });
    row.classList.add('first');
    row.querySelector('.retry').addEventListener('click', () => this.#client.retry(item));
    row.querySelector('.discard').addEventListener('click', () => this.#client.discard(item));
    return row;
  }

  #showEnds() {
    const isEmpty = !this.#rows.size && !$('waiting').childElementCount;
    const beginning = isEmpty ? T.empty : T.beginning;
    $('older').textContent = !this.#older ? beginning : this.#missing.older ? T.missing : T.loading;
    $('newer').textContent = this.#missing.newer ? T.missing : T.loading;
    $('newer').hidden = !this.#newer;
  }

  // --- Scrolling and seeing ---

  #divide(row) {
    this.#divider?.querySelector('.divider').setAttribute('hidden', '');
    this.#divider = row ?? null;
    row?.querySelector('.divider').removeAttribute('hidden');
  }

  removeDivider() {
    this.#divide(null);
  }

  #toEnd() {
    this.#log.scrollTop = this.#log.scrollHeight;
    this.#scrolled();
  }

  /** To the end; but no further than that a row which nobody has seen yet is at the top. */
  #toRow(row, above) {
    const end = this.#log.scrollHeight - this.#log.clientHeight;
    const top = row.getBoundingClientRect().top - this.#log.getBoundingClientRect().top + this.#log.scrollTop;
    this.#log.scrollTop = Math.min(end, top - above);
    this.#scrolled();
  }

  #toDivider() {
    if (this.#divider?.isConnected) this.#toRow(this.#divider, this.#log.clientHeight / 5);
    else this.#toEnd();
  }

  #scrolled() {
    const below = this.#log.scrollHeight - this.#log.scrollTop - this.#log.clientHeight;
    this.#sticks = below < 40 && !this.#newer;
    this.onscroll?.(this.#sticks);
  }

  #visibilityChanged() {
    if (!isSeen() || this.gid === null) return;
    if (this.#sticks) this.#toDivider(); // what came while the tab was hidden
    this.#tellSeen();
  }

  // A message was seen if half of it, or half a screen of it, is in view, in a tab that is in view.
  #looked(entries) {
    for (const { target, intersectionRatio, intersectionRect, rootBounds } of entries) {
      const isInView = intersectionRatio >= 0.5 || intersectionRect.height >= (rootBounds?.height ?? Infinity) / 2;
      if (isInView) this.#inView.add(target);
      else this.#inView.delete(target);
    }
    this.#tellSeen();
  }

  #tellSeen() {
    if (!isSeen() || !this.#inView.size) return;
    const at = Math.max(...[...this.#inView].map(({ message }) => message.at));
    this.#client.shown(this.gid, at);
    for (const row of this.#inView) this.seen.unobserve(row);
    this.#inView.clear();
  }
}

/** Everything around the conversation: the list of groups, the composer, dialogs, the token. */
class Page {
  #client;
  #timeline;
  #claims;
  #tokenKey = `imcore token ${new URL('.', import.meta.url).pathname}`;
  #info = null; // the message whose readers are shown
  #isExpiring = false;
  #presenceTimer = null;
  #groupsTimer = null;
  #peers = new Map(); // gid -> the other user, of chats whose gid is a hash

  async start() {
    document.documentElement.lang = LANGUAGE === 'zh' ? 'zh-Hans' : 'en';
    translate(document);
    this.#listenToDialogs();
    addEventListener('popstate', () => this.#navigated());
    const token = this.#takeToken();
    this.#claims = claimsOf(token ?? '');
    if (!this.#claims) return this.#askToken(T.login_needed);
    try {
      this.#client = await ImClient.open({ token });
    } catch (error) {
      return this.#banner(T.banner_failed(error.message), 'bad');
    }
    this.#timeline = new Timeline(this.#client);
    this.#listen();
    $('me').textContent = this.#client.uid;
    paint($('my-avatar'), this.#client.uid, true);
    $('app').hidden = false;
    this.#showGroups();
    this.#showState();
    this.#navigated();
  }

  // --- The token ---

  /** Take the token out of the address: it stays in this tab, and neither in the history nor in a copied link. */
  #takeToken() {
    const token = new URLSearchParams(location.hash.slice(1)).get('token');
    if (token) {
      sessionStorage.setItem(this.#tokenKey, token);
      history.replaceState(null, '', location.pathname + location.search);
    }
    return sessionStorage.getItem(this.#tokenKey);
  }

  #askToken(why) {
    $('login').querySelector('.why').textContent = why;
    $('login').querySelector('.error').hidden = true;
    $('login').querySelector('[data-close]').hidden = !this.#client;
    if (!$('login').open) $('login').showModal();
  }

  async #giveToken(token) {
    const claims = claimsOf(token);
    if (!claims) throw new Error(T.token_bad);
    const isSame = this.#client?.uid === claims.sub;
    if (isSame) await this.#client.setToken(token);
    sessionStorage.setItem(this.#tokenKey, token);
    if (!isSame) return location.reload(); // somebody else: another database
    this.#isExpiring = false;
    this.#showState();
    return $('login').close();
  }

  /** Demo users may ask for tokens of each other, and for a longer one of their own. */
  async #refreshDemo() {
    if (!this.#claims.demo) return;
    const ask = async (uid) => [uid, (await this.#client.call('demo_token', { uid })).token];
    const tokens = await Promise.all(this.#claims.demo.map(ask));
    const own = tokens.find(([uid]) => uid === this.#client.uid);
    if (own) await this.#giveToken(own[1]);
    const items = tokens.map(([uid, token]) => this.#demoItem(uid, token));
    $('demo')
      .querySelector('ul')
      .replaceChildren(...items);
    $('demo').hidden = false;
  }

  #demoItem(uid, token) {
    const item = clone('person');
    const [avatar, name, note] = item.children;
    paint(avatar, uid, true);
    if (uid === this.#client.uid) {
      [name.textContent, note.textContent] = [uid, T.demo_me];
      return item;
    }
    const link = document.createElement('a');
    Object.assign(link, {
      href: `#token=${token}`,
      target: '_blank',
      rel: 'noopener',
      textContent: T.demo_open(uid),
    });
    name.replaceChildren(link);
    return item;
  }

  // --- Events ---

  #listen() {
    const client = this.#client;
    client.addEventListener('state', () => this.#stateChanged());
    // Many messages at once draw the list once.
    client.addEventListener('groups', () => (this.#groupsTimer ??= setTimeout(() => this.#showGroups(), 30)));
    client.addEventListener('reset', () => this.#timeline.open(this.#timeline.gid));
    client.addEventListener('messages', ({ detail }) => this.#messagesCame(detail.gid));
    client.addEventListener('outbox', ({ detail }) => this.#isOpen(detail.gid) && this.#timeline.update());
    client.addEventListener('changed', ({ detail }) => this.#changed(detail));
    client.addEventListener('expiring', () => this.#expiring());
    this.#timeline.onscroll = () => this.#showJump();
    $('jump').addEventListener('click', () => this.#timeline.toNewest());
    $('back').addEventListener('click', () => this.#close());
    $('new-chat').addEventListener('click', () => this.#open_dialog($('new')));
    $('groups').addEventListener('click', ({ target }) => this.#choose(target.closest('button')));
    $('groups').addEventListener('keydown', (event) => moveFocus(event, [...$('groups').querySelectorAll('button')]));
    $('log').addEventListener('click', ({ target }) => this.#showInfo(target.closest('.tick')));
    $('log').addEventListener('click', ({ target }) => this.#markUnread(target.closest('.mark')));
    $('log').addEventListener('keydown', (event) => this.#keyInLog(event));
    this.#listenToComposer();
    document.addEventListener('visibilitychange', () => this.#askPresence());
  }

  #isOpen(gid) {
    return this.#timeline.gid === gid;
  }

  #stateChanged() {
    this.#showState();
    if (this.#client.state === 'unauthorized') this.#askToken(this.#whyOut());
    if (this.#client.state !== 'online') return;
    this.#isExpiring = false;
    this.#timeline.resume();
    this.#askPresence();
    this.#refreshDemo().catch(() => {}); // the next connection asks again
  }

  async #messagesCame(gid) {
    const { last, unread } = this.#client.group(gid);
    if (this.#isOpen(gid)) await this.#timeline.update();
    if (this.#isOpen(gid) && !$('presence').textContent) this.#askPresence(); // the first message has made the chat
    if (unread && last)
      $('heard').textContent = T.heard(
        this.#isOpen(gid) ? nameOf(last.sender_uid) : this.#titleOf(gid),
        textOf(last),
      );
  }

  #changed({ gid, ats }) {
    if (this.#isOpen(gid)) this.#timeline.change(ats);
    if (this.#info && this.#info.gid === gid && ats.includes(this.#info.at)) this.#fillInfo();
    this.#showGroups();
  }

  #expiring() {
    if (this.#claims.demo) return this.#refreshDemo().catch(() => {});
    this.#isExpiring = true;
    return this.#showState();
  }

  #whyOut() {
    return this.#client.refusal ? T.login_refused(this.#client.refusal) : T.login_ended;
  }

  #showState() {
    const { state } = this.#client;
    $('state').dataset.state = state;
    $('state').textContent = T[`state_${state}`];
    if (state === 'offline') this.#banner(T.banner_offline, 'wait');
    else if (state === 'unauthorized') this.#banner(T.banner_unauthorized, 'bad', this.#whyOut());
    else if (this.#isExpiring) this.#banner(T.banner_expiring, 'wait', T.banner_expiring);
    else $('banner').hidden = true;
  }

  #banner(text, kind, why) {
    $('banner').textContent = text;
    $('banner').dataset.kind = kind;
    $('banner').hidden = false;
    if (!why) return;
    const button = document.createElement('button');
    button.textContent = T.login;
    button.addEventListener('click', () => this.#askToken(why));
    $('banner').append(' ', button);
  }

  // --- The list of groups ---

  #peerOf(gid) {
    const peer = peerOf(gid, this.#client.uid) ?? this.#peers.get(gid) ?? null;
    if (peer === null && isDirect(gid) && !isErasedChat(gid) && !this.#peers.has(gid)) this.#learnPeer(gid);
    return peer;
  }

  async #learnPeer(gid) {
    this.#peers.set(gid, null); // ask once
    const members = await this.#client.call('members', { gid }).catch(() => this.#peers.delete(gid) && []);
    const other = members.find(({ uid }) => uid !== this.#client.uid) ?? members[0];
    if (!other) return;
    this.#peers.set(gid, other.uid);
    if (this.#isOpen(gid)) this.#showTitle(gid);
    this.#showGroups();
  }

  #titleOf(gid) {
    if (isErasedChat(gid)) return T.erased_user;
    const peer = this.#peerOf(gid);
    return peer === null ? gid : peer === this.#client.uid ? T.yourself : peer;
  }

  #showGroups() {
    clearTimeout(this.#groupsTimer);
    this.#groupsTimer = null;
    const groups = this.#client.groups();
    const focused = document.activeElement?.closest('#groups button')?.dataset.gid;
    const rows = new Map([...$('groups').children].map((item) => [item.firstElementChild.dataset.gid, item]));
    const items = groups.map((group) => this.#groupItem(rows.get(group.gid) ?? clone('group'), group));
    // Moving an element takes the focus from it: only a changed order moves any.
    if (items.length !== rows.size || items.some((item, n) => $('groups').children[n] !== item)) {
      $('groups').replaceChildren(...items);
      if (focused) items.find((item) => item.firstElementChild.dataset.gid === focused)?.firstElementChild.focus();
    }
    $('no-groups').hidden = groups.length > 0;
    const unread = groups.reduce((sum, group) => sum + group.unread, 0);
    document.title =
      (unread ? `(${unread}) ` : '') + (this.#timeline.gid === null ? 'imcore' : this.#titleOf(this.#timeline.gid));
    const open = this.#timeline.gid === null ? null : this.#client.group(this.#timeline.gid);
    $('composer').hidden = this.#timeline.gid === null || Boolean(open?.left);
    $('gone').hidden = !open?.left;
    this.#showJump();
  }

  #groupItem(item, { gid, unread, last }) {
    const button = item.firstElementChild;
    const title = this.#titleOf(gid);
    button.dataset.gid = gid;
    button.classList.toggle('unread', unread > 0);
    if (this.#isOpen(gid)) button.setAttribute('aria-current', 'true');
    else button.removeAttribute('aria-current');
    paint(button.querySelector('.avatar'), title, isDirect(gid));
    button.querySelector('.name').textContent = title;
    button.querySelector('time').textContent = last ? shortTime(timeOf(last.at)) : '';
    button.querySelector('.preview').textContent = last ? this.#preview(gid, last) : '';
    const badge = button.querySelector('.badge');
    badge.hidden = !unread;
    badge.textContent = unread > 999 ? '999+' : unread;
    badge.setAttribute('aria-label', T.new_count(unread));
    return item;
  }

  #preview(gid, message) {
    const text = textOf(message).slice(0, 200);
    if (message.sender_uid === this.#client.uid) return T.heard(T.you, text);
    return isDirect(gid) ? text : T.heard(nameOf(message.sender_uid), text);
  }

  #choose(button) {
    if (!button) return;
    const { gid } = button.dataset;
    // On a narrow screen the conversation is a page of its own: the browser's back button leads to the list.
    const go = isNarrow() ? 'pushState' : 'replaceState';
    history[go]({ isPushed: isNarrow() }, '', `#g=${encodeURIComponent(gid)}`);
    this.#openConversation(gid);
  }

  #close() {
    if (history.state?.isPushed) return history.back();
    history.replaceState(null, '', location.pathname + location.search);
    return this.#navigated();
  }

  #navigated() {
    if (new URLSearchParams(location.hash.slice(1)).has('token')) {
      this.#takeToken();
      return location.reload();
    }
    return this.#client && this.#openConversation(new URLSearchParams(location.hash.slice(1)).get('g'));
  }

  // --- The conversation ---

  #openConversation(gid) {
    const before = this.#timeline.gid;
    $('app').dataset.view = gid === null ? 'list' : 'conversation';
    $('nothing').hidden = gid !== null;
    for (const element of [$('log'), $('conversation').querySelector('header')]) element.hidden = gid === null;
    this.#timeline.open(gid);
    this.#showGroups();
    if (gid === null) {
      [...$('groups').querySelectorAll('button')].find((button) => button.dataset.gid === before)?.focus();
      return;
    }
    this.#showTitle(gid);
    $('presence').textContent = '';
    this.#askPresence();
    if (matchMedia('(pointer: fine)').matches) $('composer').querySelector('textarea').focus();
  }

  #showTitle(gid) {
    $('title').textContent = this.#titleOf(gid);
    paint($('avatar'), this.#titleOf(gid), isDirect(gid));
  }

  #showJump() {
    const { gid } = this.#timeline;
    const unread = gid === null ? 0 : (this.#client.group(gid)?.unread ?? 0);
    const log = $('log');
    $('jump').hidden = gid === null || log.scrollHeight - log.scrollTop - log.clientHeight < 80;
    $('jump').classList.toggle('news', unread > 0);
    $('jump').querySelector('span').textContent = unread ? T.new_count(unread) : '';
    $('jump').setAttribute('aria-label', unread ? T.new_count(unread) : T.to_newest);
  }

  async #askPresence() {
    clearTimeout(this.#presenceTimer);
    const { gid } = this.#timeline;
    if (gid === null || !isSeen()) return;
    this.#presenceTimer = setTimeout(() => this.#askPresence(), PRESENCE_MS);
    const text = await this.#presenceOf(gid).catch(() => '');
    if (this.#isOpen(gid)) $('presence').textContent = text;
  }

  async #presenceOf(gid) {
    const peer = this.#peerOf(gid);
    if (peer === this.#client.uid) return '';
    if (peer !== null) return (await this.#client.call('online', { gid, uids: [peer] })).length ? T.online : T.offline;
    const { members } = await this.#client.call('group', { gid });
    const online = members > MOST_LISTED ? null : (await this.#client.call('online', { gid })).length;
    return online === null ? T.member_count(members) : T.online_count(online, members);
  }

  #listenToComposer() {
    const [text, button] = $('composer').elements;
    text.addEventListener('input', () => (button.disabled = !text.value.trim()));
    text.addEventListener('keydown', (event) => {
      // While an input method composes, Enter chooses a word: it does not send.
      if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      $('composer').requestSubmit();
    });
    $('composer').addEventListener('submit', (event) => {
      event.preventDefault();
      const content = text.value.trim();
      if (!content) return;
      text.value = '';
      button.disabled = true;
      this.#send(content);
    });
  }

  async #send(content) {
    const { gid } = this.#timeline;
    await this.#client.send({ gid, to: this.#peerOf(gid) ?? undefined, content });
    this.#timeline.removeDivider();
    this.#timeline.toNewest();
  }

  #keyInLog(event) {
    const row = event.target.closest('.row');
    if (event.key === 'Enter' && row === event.target) {
      event.preventDefault(); // or the same key would press the first button of the dialog
      row.querySelector('.tick:not([hidden]), .mark:not([hidden]), .refusal:not([hidden]) button')?.click();
    } else if (event.key === 'Escape') $('composer').querySelector('textarea').focus();
    else moveFocus(event, this.#timeline.rows(), row);
  }

  // --- Dialogs ---

  #listenToDialogs() {
    for (const button of document.querySelectorAll('[data-close]'))
      button.addEventListener('click', () => button.closest('dialog').close());
    $('login').addEventListener('cancel', (event) => !this.#client && event.preventDefault());
    $('info').addEventListener('close', () => (this.#info = null));
    onSubmit($('login'), ({ token }) => this.#giveToken(token.value.trim()));
    onSubmit($('new'), ({ uid }) => this.#startChat(uid.value.trim()));
    $('recall').addEventListener('click', () => this.#recall());
  }

  #open_dialog(dialog) {
    dialog.querySelector('form')?.reset();
    dialog.querySelector('.error').hidden = true;
    dialog.showModal();
  }

  async #startChat(uid) {
    const gid = await directGid(this.#client.uid, uid);
    this.#peers.set(gid, uid);
    $('new').close();
    this.#choose({ dataset: { gid } });
  }

  /** Mark unread, and close the conversation: what is in view counts as read. */
  async #markUnread(button) {
    if (!button) return;
    const { msgid } = button.closest('.row').message;
    const { gid } = this.#timeline;
    this.#close();
    try {
      await this.#client.markUnread(gid, msgid);
    } catch (error) {
      this.#banner(error.error === 'Offline' ? T.banner_offline : T.failed(error.message), 'wait');
    }
  }

  #showInfo(tick) {
    if (!tick || tick.disabled) return;
    this.#info = tick.closest('.row').message;
    $('info').querySelector('.quote').textContent = this.#info.content;
    $('info').querySelector('.people').replaceChildren();
    $('recall').textContent = T.recall;
    $('recall').dataset.sure = '';
    this.#open_dialog($('info'));
    this.#fillInfo();
  }

  async #fillInfo() {
    const { gid, msgid } = this.#info;
    try {
      const status = await this.#client.call('status', { gid, msgid });
      if (this.#info?.msgid !== msgid) return;
      const readers = (status.read_by ?? []).map(({ uid, read_at }) => ({ uid, time: read_at }));
      const arrived = new Set(status.delivered_to ?? []);
      const named = (uids) => uids.map((uid) => ({ uid }));
      const some = (status.unread_by ?? []).filter((uid) => arrived.has(uid));
      const others = (status.unread_by ?? []).filter((uid) => !arrived.has(uid));
      const onlyArrived = Math.max(0, (status.delivered ?? 0) - status.read);
      const sections = [];
      if (status.read) sections.push(section(T.read_by(status.read), readers));
      if (onlyArrived) sections.push(section(T.arrived_at(onlyArrived), named(some)));
      if (status.unread > onlyArrived) sections.push(section(T.unread_by(status.unread - onlyArrived), named(others)));
      $('info')
        .querySelector('.people')
        .replaceChildren(...sections);
    } catch (error) {
      this.#infoFailed(error);
    }
  }

  #infoFailed(error) {
    const line = $('info').querySelector('.error');
    line.textContent = error.error === 'Offline' ? T.banner_offline : T.failed(error.message);
    line.hidden = false;
  }

  async #recall() {
    if (!$('recall').dataset.sure) {
      $('recall').dataset.sure = 'asked';
      $('recall').textContent = T.recall_sure;
      return;
    }
    try {
      await this.#client.recall(this.#info.gid, this.#info.msgid);
      $('info').close();
    } catch (error) {
      this.#infoFailed(error);
    }
  }
}

function shortTime(date) {
  return startOfDay(date) === startOfDay(new Date()) ? CLOCK.format(date) : SHORT_DAY.format(date);
}

/** The arrow keys, Home and End move the focus along a list. */
function moveFocus(event, elements, current = document.activeElement) {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  const place = elements.indexOf(current);
  const goal =
    { Home: 0, End: elements.length - 1 }[event.key] ?? (step && (place < 0 ? elements.length - 1 : place + step));
  if (goal === undefined || !elements[goal]) return;
  event.preventDefault();
  elements[goal].focus();
}

/** Do something with the fields of a dialog's form; if it fails the dialog stays, and says why. */
function onSubmit(dialog, action) {
  dialog.querySelector('form').addEventListener('submit', async (event) => {
    event.preventDefault();
    const line = dialog.querySelector('.error');
    line.hidden = true;
    try {
      await action(event.target.elements);
    } catch (error) {
      line.textContent = error.message;
      line.hidden = false;
    }
  });
}

function section(title, people) {
  const part = document.createElement('section');
  const heading = document.createElement('h3');
  heading.textContent = title;
  const list = document.createElement('ul');
  list.append(...people.slice(0, MOST_NAMES).map(personItem));
  part.append(heading, list);
  if (people.length > MOST_NAMES) part.append(T.and_more(people.length - MOST_NAMES));
  return part;
}

function personItem({ uid, time }) {
  const item = clone('person');
  const [avatar, name, at] = item.children;
  paint(avatar, uid, true);
  name.textContent = nameOf(uid);
  if (time) [at.textContent, at.dateTime] = [shortTime(new Date(time)), time];
  return item;
}

// Who imports this module for `ImClient` has a page of their own.
if (document.querySelector('[data-imcore-page]')) new Page().start();
